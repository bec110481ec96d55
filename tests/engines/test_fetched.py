"""Engines on a node that has not fetched their models yet: it fetches what the driver saw, or says what is wrong."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch import fetched
from routelmt_batch.engines.actor import BATCH, EngineActor, Serving
from routelmt_batch.engines.gathering import PartLimits
from routelmt_batch.engines.models import Scoring
from routelmt_batch.engines.process import EngineBroken, Recipe
from routelmt_batch.files import bucket
from routelmt_batch.metrics.metric import open_metric
from routelmt_batch.prompts import Prompter
from routelmt_batch.routers.scorers import Prefill
from routelmt_batch.spec import Metric
from routelmt_batch.store import cache
from tests.conftest import MODELS
from tests.engines.given import keep_results, requests
from tests.files.s3 import S3Server, s3_server

TEXTS = ["A cat.", "The house by the river is old.", "Bread."]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def recipe(server: S3Server, tmp_path, monkeypatch) -> Recipe:
    """The router's, from a store, as the driver sends it to a node that has an empty cache."""
    server.put_folder(MODELS / "router", f"{tmp_path.name}/router")
    for name, value in {**server.environ, cache.VARIABLE: str(tmp_path / "driver")}.items():
        monkeypatch.setenv(name, value)
    bucket._store.cache_clear()
    monkeypatch.setattr(fetched, "_COPIES", {})
    uri = server.uri(f"{tmp_path.name}/router")
    cache.fetch(uri)
    recipe = Recipe(Scoring(Prefill(uri)), Prompter(uri), 256, models=fetched.copies(uri))
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "node"))
    monkeypatch.setattr(fetched, "_COPIES", {})
    return pickle.loads(pickle.dumps(recipe))


def serving(recipe: Recipe, folder: Path) -> Serving:
    return Serving("score", recipe, keep_results(folder), PartLimits(rows=1024, calls=1), 0)


def scored(recipe: Recipe, rows: pa.Table, folder: Path) -> list[float]:
    """The scores by an actor with an engine's process, on this node."""
    actor = EngineActor(serving(recipe, folder), None)
    try:
        actor(pa.table({BATCH: pa.array([pickle.dumps(rows)], pa.binary())}))
    finally:
        actor._engine.end()
    return pq.read_table(folder / "0.parquet")["score"].to_pylist()


@pytest.mark.slow
def test_a_node_fetches_the_model_and_scores_as_from_a_folder(recipe, tmp_path):
    rows = requests(source=TEXTS)
    found = scored(recipe, rows, tmp_path)
    folder = str(MODELS / "router")
    ids = Prompter(folder).token_ids(TEXTS, ["en"] * 3, ["de"] * 3)
    expected = Prefill(folder)(rows.append_column("tokens", pa.array(ids))).tolist()
    assert found == pytest.approx(expected, abs=1e-5)
    (copy,) = fetched.copies(*recipe.models).values()
    assert Path(copy.folder).is_relative_to(tmp_path / "node")


@pytest.mark.slow
def test_comet_in_its_own_environment_loads_the_actors_copy(recipe, server, tmp_path, monkeypatch):
    """That environment has no client of object stores."""
    server.put_folder(MODELS / "comet", f"{tmp_path.name}/comet")
    uri = server.uri(f"{tmp_path.name}/comet")
    here = open_metric(Metric(source=f"comet:{MODELS / 'comet'}"))
    there = open_metric(Metric(source=f"comet:{uri}"))
    assert there.signature() == here.signature()
    rows = requests(source=TEXTS, hypothesis=["Eine Katze.", "Das Haus.", "Brot."])
    scores = []
    for name, metric in (("here", here), ("there", there)):
        (tmp_path / name).mkdir()
        models = fetched.copies(metric.checkpoint.source)
        load = Scoring(metric, cuts=metric.cuts)
        recipe = Recipe(load, python=metric.python, models=models)
        scores.append(scored(recipe, rows, tmp_path / name))
    assert scores[0] == pytest.approx(scores[1], abs=1e-5) and None not in scores[0]


def test_a_node_that_finds_another_version_says_so(recipe, server, tmp_path):
    server.put(f"{tmp_path.name}/router/config.json", b"{}")
    with pytest.raises(EngineBroken, match=r"router: on node .* it has the SHA-256 .*but the job began with"):
        EngineActor(serving(recipe, tmp_path), None)


def test_a_node_without_access_says_so(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(bucket, "_RETRY_S", 0.1)
    bucket._store.cache_clear()
    with pytest.raises(EngineBroken, match=r"s3://corpus/.*/router: the store did not do it"):
        EngineActor(serving(recipe, tmp_path), None)
    bucket._store.cache_clear()
