"""Routers and base models in an object store: evaluated, calibrated and trained on as from a folder."""

import json
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from routelmt_batch import fetched
from routelmt_batch.errors import UsageError
from routelmt_batch.files import bucket
from routelmt_batch.learning.calibrate import calibrate
from routelmt_batch.learning.evaluation.evaluate import Settings, evaluate
from routelmt_batch.learning.training.folder import fingerprint
from routelmt_batch.learning.training.tables import find_tables
from routelmt_batch.progress import Bars
from routelmt_batch.store import cache
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine
from tests.files.s3 import S3Server, s3_server
from tests.learning.training import make_spec, write_labels

BARS = Bars(Console(quiet=True), quiet=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(autouse=True)
def store(server: S3Server, tmp_path, monkeypatch):
    for name, value in {**server.environ, cache.VARIABLE: str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    bucket._store.cache_clear()
    monkeypatch.setattr(fetched, "_COPIES", {})
    yield server
    bucket._store.cache_clear()


def put(server: S3Server, name: str, tmp_path: Path) -> str:
    """The URI of a demo model in the store."""
    server.put_folder(MODELS / name, f"{tmp_path.name}/{name}")
    return server.uri(f"{tmp_path.name}/{name}")


def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "sent.log")


def test_calibrate_stores_the_same_thresholds_in_the_routers_card(server, tmp_path):
    table = str(write_labels(tmp_path / "labels.parquet"))
    folder = shutil.copytree(MODELS / "router", tmp_path / "router")
    uri = put(server, "router", tmp_path)
    keys = server.keys(f"{tmp_path.name}/router")
    for router in (str(folder), uri):
        calibrate(router, [table], [Decimal("0.3")], 500, BARS, engine(tmp_path).opened)
    card = json.loads(server.read(f"{tmp_path.name}/router/routelmt.json"))
    assert card == json.loads((folder / "routelmt.json").read_text())
    assert card["calibration"]["thresholds"].keys() == {"0.3"}
    assert server.keys(f"{tmp_path.name}/router") == keys, "its work is removed"


def test_a_stopped_calibration_goes_on_in_the_store(server, tmp_path):
    table = str(write_labels(tmp_path / "labels.parquet"))
    uri = put(server, "router", tmp_path)
    stopped = engine(tmp_path)
    with stopped.stopping(lambda label, row: row["row"] == 299):
        calibrate(uri, [table], [Decimal("0.3")], 500, BARS, stopped.opened)
    assert any("/_calibrate/" in key for key in server.keys(f"{tmp_path.name}/router"))
    calibrate(uri, [table], [Decimal("0.3")], 500, BARS, engine(tmp_path).opened)
    assert not any("/_calibrate/" in key for key in server.keys(f"{tmp_path.name}/router"))


def test_a_router_that_is_not_there_is_told(server, tmp_path):
    with pytest.raises(UsageError, match="s3://corpus/nowhere: not a folder; give a router folder"):
        calibrate("s3://corpus/nowhere", [], [Decimal("0.3")], 500, BARS, engine(tmp_path).opened)


def test_evaluate_runs_routers_from_a_store(server, tmp_path):
    table = str(write_labels(tmp_path / "labels.parquet"))
    found = []
    for name, folder in (
        ("here", lambda name: str(MODELS / name)),
        ("there", lambda name: put(server, name, tmp_path)),
    ):
        routers = (f"mine={folder('router')}", f"length={folder('small')}")
        settings = Settings(Decimal("0.3"), routers, resamples=50)
        found.append(evaluate([table], settings, tmp_path / name, BARS, engine(tmp_path).opened))
    here, there = (
        {name: one.overall["mean_delta"].value for name, one in each.routers.items()} for each in found
    )
    assert here == there and {"mine", "length"} <= here.keys()
    assert not any("small model" in warning for warning in found[1].warnings)


def test_a_training_depends_on_the_same_base_wherever_it_is(server, tmp_path):
    write_labels(tmp_path / "labels.parquet")
    here = make_spec(tmp_path)
    there = make_spec(tmp_path, base__source=put(server, "small", tmp_path))
    assert fingerprint(there, find_tables(there)) == fingerprint(here, find_tables(here))
