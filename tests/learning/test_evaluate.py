"""Evaluate: routers run over label tables, on a made-up engine where one is needed."""

import json
import re
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from transformers import AutoTokenizer

from routelmt_batch.errors import InputError, ModelError, OutputError, UsageError
from routelmt_batch.learning.evaluation.evaluate import Settings, evaluate, parse_routers
from routelmt_batch.progress import Bars
from routelmt_batch.rows import LABEL_METADATA
from routelmt_batch.store import checkpoints
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine

BARS = Bars(Console(quiet=True), quiet=True)
SMALL = str(MODELS / "small")
WORDS = ["the", "a", "cat", "dog", "sees", "eats", "big", "small", "house", "tree", "quickly", "slowly"]


def made(small_weights: str, **changes):
    one = {"source": "x", "weights": small_weights}
    return {
        "metric": {"name": "chrf", "signature": "s"},
        "models": {"small": one, "large": one},
        "prompt": {"template": "t"},
        **changes,
    }


def table(path: Path, rows: int = 300, seed: int = 0, metadata: object = None, **columns) -> Path:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(rows)]
    small = rng.uniform(20, 80, rows)
    values = {
        "source": texts,
        "source_lang": ["en"] * rows,
        "target_lang": ["de" if i % 3 else "zh" for i in range(rows)],
        "quality_small": small,
        "quality_large": small + rng.normal(8, 15, rows),
        **columns,
    }
    found = pa.table(values)
    if metadata:
        told = metadata if isinstance(metadata, bytes) else json.dumps(metadata)
        found = found.replace_schema_metadata({LABEL_METADATA: told})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found, path)
    return path


def run(tmp_path, tables, routers=(), scores=(), **settings):
    tmp_path.mkdir(exist_ok=True)
    engine = FakeEngine(tmp_path / "sent.log")
    given = Settings(Decimal("0.3"), tuple(routers), tuple(scores), resamples=50, **settings)
    return evaluate([str(path) for path in tables], given, tmp_path / "out", BARS, engine.opened)


def test_length_routing_is_what_sorting_by_tokens_gives(tmp_path):
    """Two tables, so that order over files counts, and rows without a quality between the others."""
    first = table(tmp_path / "t" / "a.parquet")
    second = table(tmp_path / "b.parquet", seed=1)
    lost = pq.read_table(second)["quality_small"].to_pylist()
    lost[7] = None
    table(tmp_path / "b.parquet", seed=1, quality_small=pa.array(lost, pa.float64()))
    found = run(tmp_path, [first.parent, second], [f"length={SMALL}"])
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    rows = [row for path in (first, second) for row in pq.read_table(path).to_pylist()]
    rows = [row for row in rows if row["quality_small"] is not None]
    order = sorted(range(len(rows)), key=lambda i: (-len(tokenizer.tokenize(rows[i]["source"])), i))
    k = int(0.3 * len(rows))
    gains = [row["quality_large"] - row["quality_small"] for row in rows]
    expected = sum(gains[i] for i in order[:k]) / k
    measured = found.routers["length"].overall["mean_delta"]
    assert measured.value == pytest.approx(expected)
    assert measured.low <= expected <= measured.high
    assert found.rows == 599 and found.best_baseline in ("length", "random")
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["routers"]["length"]["directions"]["en-zh"]["mean_delta"]["value"] is not None
    for suffix in ("md", "png", "svg"):
        assert (tmp_path / "out" / f"evaluation.{suffix}").stat().st_size > 500


def test_a_score_column_needs_no_text_and_no_engine(tmp_path):
    path = table(tmp_path / "a.parquet", mine=np.arange(300.0))
    bare = pq.read_table(path).select(["quality_small", "quality_large", "mine"])
    pq.write_table(bare, path)
    found = run(tmp_path, [path], scores=["mine"])
    gain = (bare["quality_large"].to_numpy() - bare["quality_small"].to_numpy())[-90:]
    assert found.routers["mine"].overall["mean_delta"].value == pytest.approx(gain.mean())
    assert set(found.routers) == {"mine", "random", "oracle-gain", "oracle-quality"}


def test_a_router_folder_runs_in_the_engine_under_any_name(tmp_path):
    weights = checkpoints.weights_hash(SMALL)
    path = table(tmp_path / "a.parquet", metadata=made(weights))
    found = run(tmp_path, [path], [f"ours={MODELS / 'router'}"])
    assert found.routers["ours"].overall["spearman"].value is not None
    assert found.routers["ours"].against_best_baseline
    assert any("ours: trained on" in warning for warning in found.warnings), "another metric is told"


def test_a_router_for_another_base_model_is_refused(tmp_path):
    path = table(tmp_path / "a.parquet", metadata=made("0" * 64))
    with pytest.raises(ModelError, match="made for another small model"):
        run(tmp_path, [path], [f"ours={MODELS / 'router'}"])


@pytest.mark.parametrize(
    "metadata", [b"not JSON", b"\xff\x00", b"[1]", b"{}", {"metric": {"name": "chrf"}}, {"models": 3}]
)
def test_metadata_of_another_program_is_none(tmp_path, metadata):
    found = run(tmp_path, [table(tmp_path / "a.parquet", metadata=metadata)], [f"length={SMALL}"])
    assert found.signature["labels"] == []
    assert any("do not name their models" in warning for warning in found.warnings)


def test_tables_are_read_where_the_label_spec_had_text_and_languages(tmp_path):
    plain = run(tmp_path, [table(tmp_path / "a.parquet", target_lang=["de"] * 300)], [f"length={SMALL}"])
    place = {"columns": {"source": "text", "source_lang": "from"}, "target_lang": "de"}
    metadata = {LABEL_METADATA: json.dumps(made(checkpoints.weights_hash(SMALL), input=place))}
    bare = pq.read_table(tmp_path / "a.parquet").drop(["target_lang"])
    bare = bare.rename_columns({"source": "text", "source_lang": "from"}).replace_schema_metadata(metadata)
    pq.write_table(bare, tmp_path / "b.parquet")
    other = run(tmp_path / "other", [tmp_path / "b.parquet"], [f"length={SMALL}"])
    assert other.routers == plain.routers and other.directions == plain.directions
    with pytest.raises(InputError, match=r"a.parquet has source in column 'source'.*b.parquet has .*'text'"):
        run(tmp_path, [tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_a_length_or_entropy_router_of_another_small_model_is_told(tmp_path):
    path = table(tmp_path / "a.parquet", metadata=made(checkpoints.weights_hash(SMALL)))
    told = "length: {} .* is not the small model that made the labels"
    for model, expected in ((SMALL, False), (str(MODELS / "large"), True)):
        warnings = run(tmp_path / Path(model).name, [path], [f"length={model}"]).warnings
        assert any(re.match(told.format(model), warning) for warning in warnings) == expected


def test_directions_unseen_in_training_are_told(tmp_path):
    path = table(tmp_path / "a.parquet", target_lang=["fr"] * 300)
    found = run(tmp_path, [path], [f"ours={MODELS / 'router'}"])
    assert any("not trained on en-fr" in warning for warning in found.warnings)
    assert any("do not name their models" in warning for warning in found.warnings)


def test_an_evaluation_run_again_scores_nothing_anew(tmp_path):
    path = table(tmp_path / "a.parquet")
    first = run(tmp_path, [path], [f"ours={MODELS / 'router'}"])
    sent = (tmp_path / "sent.log").read_text()
    again = run(tmp_path, [path], [f"ours={MODELS / 'router'}"])
    assert (tmp_path / "sent.log").read_text() == sent
    assert again.routers == first.routers


def test_an_evaluation_of_other_tables_drops_the_scores_of_the_first(tmp_path):
    """It is what a first evaluation of them would be; the folder is no dead end."""
    ours = [f"ours={MODELS / 'router'}"]
    run(tmp_path, [table(tmp_path / "a.parquet")], ours)
    other = table(tmp_path / "b.parquet", rows=200, seed=1)
    again = run(tmp_path, [other], ours)
    assert again.routers == run(tmp_path / "fresh", [other], ours).routers


def test_an_evaluation_may_lie_beside_its_tables(tmp_path):
    run(tmp_path, [table(tmp_path / "a.parquet").parent], [f"ours={MODELS / 'router'}"])


def test_a_router_may_be_a_hub_name(tmp_path, monkeypatch):
    """A cache as the hub's client lays it out; nothing is downloaded."""
    cache = tmp_path / "models--Some--router"
    shutil.copytree(MODELS / "router", cache / "snapshots" / "c0ffee")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = run(tmp_path, [table(tmp_path / "a.parquet")], ["ours=Some/router"])
    assert found.signature["routers"]["ours"].startswith("Some/router (gain in")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["ours=nowhere"], "there is no such folder nowhere, and 'ours' is not a kind"),
        (["lenght=x"], "did you mean 'length'?"),
        (["foo"], "--router foo: give NAME=PATH, PATH a router folder, and 'foo' is not a kind"),
        (["length"], "needs a path, length=PATH: the small model"),
        (["oracle-gain"], "always in the table"),
        (["random", "random"], "each name once"),
        ([f"random={MODELS / 'router'}"], "the evaluation adds a router random itself; give another name"),
        (
            [f"oracle-gain={MODELS / 'router'}"],
            "the evaluation adds a router oracle-gain itself; give another name",
        ),
        ([f"length={MODELS / 'nothing'}"], "no such folder"),
    ],
)
def test_a_router_that_means_nothing_is_told(given, message):
    with pytest.raises((UsageError, ModelError), match=message.replace("?", r"\?")):
        parse_routers(given, 0, "bfloat16")


@pytest.mark.parametrize("severe", ["nan", "inf", "-inf"])
def test_a_severe_loss_is_a_number_of_points(tmp_path, severe):
    with pytest.raises(UsageError, match=f"--severe {severe}: give points of gain, such as -5"):
        run(tmp_path, [table(tmp_path / "a.parquet")], severe=float(severe))


def test_where_no_folder_can_be_is_told_before_anything_is_scored(tmp_path, monkeypatch):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr("routelmt_batch.learning.evaluation.evaluate.measure", None)
    with pytest.raises(OutputError, match=f"--out {tmp_path}/out: the folder cannot be created .File exists"):
        run(tmp_path, [table(tmp_path / "a.parquet")], scores=["quality_small"])
    assert (tmp_path / "out").read_text() == "mine"


def test_a_text_that_is_lacking_is_told_in_words_that_the_command_knows(tmp_path):
    path = table(tmp_path / "a.parquet")
    pq.write_table(pq.read_table(path).rename_columns({"target_lang": "target_language"}), path)
    with pytest.raises(InputError, match="no text column 'target_lang'.*Add or rename the column, or give"):
        run(tmp_path, [path], [f"length={SMALL}"])


def test_tables_that_cannot_be_evaluated(tmp_path):
    with pytest.raises(InputError, match="^table .*nothing.parquet: no such folder or file"):
        run(tmp_path, [tmp_path / "nothing.parquet"])
    with pytest.raises(InputError, match="no column 'quality_large'"):
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table({"quality_small": [1.0, 2.0]}), path)
        run(tmp_path, [path])
    with pytest.raises(InputError, match="1 of 1 rows"):
        run(tmp_path, [table(tmp_path / "one.parquet", rows=1)])


@pytest.mark.parametrize("name", ["random", "oracle-gain", "oracle-quality", "length"])
def test_a_score_column_takes_no_other_routers_name(tmp_path, name):
    path = table(tmp_path / "a.parquet", **{name: np.arange(300.0)})
    routers = [f"length={SMALL}"] if name == "length" else []
    with pytest.raises(UsageError, match=f"--scores {name}: a router has that name .*; rename the column"):
        run(tmp_path, [path], routers, [name])


def test_constant_gains_and_nan_qualities_are_told(tmp_path):
    small = np.full(300, 50.0)
    small[3] = np.nan
    path = table(tmp_path / "a.parquet", quality_small=small, quality_large=np.full(300, 60.0))
    found = run(tmp_path, [path], [f"length={SMALL}"])
    assert found.routers["length"].overall["spearman"].value is None
    assert found.rows == 299
    told = " ".join(found.warnings)
    assert "1 of 300 rows dropped because of their quality: 1 NaN" in told
    assert "overall: every gain is 10" in told
    assert "spearman is undefined for every router" in told
