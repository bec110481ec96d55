"""Thresholds: which rows reach them, and how far new traffic may lie from the wanted fraction."""

import io
import json
import shutil
from decimal import Decimal
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from routelmt_batch.errors import InputError, UsageError
from routelmt_batch.learning import calibrate as calibration
from routelmt_batch.learning.calibrate import calibrate, thresholds
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import read_card
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine


@pytest.fixture
def router(tmp_path):
    shutil.copytree(MODELS / "router", tmp_path / "router")
    return tmp_path / "router"


def texts(path: Path, rows: int = 60, **columns) -> Path:
    """A table without labels: calibration needs none."""
    values = {
        "source": [f"Row {i} of {path.stem}." for i in range(rows)],
        "source_lang": ["en"] * rows,
        "target_lang": ["de"] * rows,
        **columns,
    }
    pq.write_table(pa.table(values), path)
    return path


def run(router, *tables, fraction="0.3", fails=lambda label, row: "", **options):
    """Thresholds, what was said on the way, and the rows that the engine was sent."""
    log = router.parent / "sent.log"
    log.unlink(missing_ok=True)
    said = io.StringIO()
    bars = Bars(Console(file=said, width=1000))
    engine = FakeEngine(log, fails)
    given = [str(path) for path in tables]
    found = calibrate(str(router), given, [Decimal(fraction)], 500, bars, engine.opened, **options)
    return found, said.getvalue(), log.read_text().splitlines() if log.exists() else []


def test_thresholds_are_stored_in_the_routers_card_and_nothing_else_is_left(router, tmp_path):
    before = json.loads((router / "routelmt.json").read_text())
    found, said, sent = run(router, texts(tmp_path / "a.parquet"))
    assert len(sent) == found.rows == 60
    one = found.thresholds["0.3"]
    scale = read_card(str(router)).scale
    assert one.reached >= 18 and (one.value - scale.mean) / scale.std == pytest.approx(
        round((one.value - scale.mean) / scale.std), abs=1e-5
    ), "the made-up scores are whole numbers, on the router's scale"
    after = json.loads((router / "routelmt.json").read_text())
    assert after["calibration"]["thresholds"]["0.3"] == one.model_dump()
    assert {**after, "calibration": None} == {**before, "calibration": None}
    assert sorted(path.name for path in router.iterdir()) == sorted(
        path.name for path in (MODELS / "router").iterdir()
    )
    assert "warning" not in said


@pytest.fixture
def stopped(router, monkeypatch):
    """Runs a calibration that is killed when all is scored."""

    def run_and_stop(*tables):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(calibration, "thresholds", Mock(side_effect=KeyboardInterrupt))
            run(router, *tables)

    return run_and_stop


@pytest.mark.parametrize(
    ("rows", "fraction", "told"), [(19, "0.3", "19 rows: "), (60, "0.01", "one row of 60")]
)
def test_too_few_rows_are_refused_before_an_engine_starts(
    router, tmp_path, monkeypatch, rows, fraction, told
):
    monkeypatch.setattr(FakeEngine, "opened", Mock(side_effect=AssertionError("an engine started")))
    with pytest.raises(UsageError, match=told):
        run(router, texts(tmp_path / "few.parquet", rows=rows), fraction=fraction)
    assert not (router / "_calibrate").exists()


def test_too_few_rows_with_a_score_are_refused_and_leave_nothing(router, tmp_path):
    with pytest.raises(InputError, match="2 rows with a score"):
        run(router, texts(tmp_path / "a.parquet"), fails=lambda label, row: "engine_error" * (row["row"] > 1))
    assert not (router / "_calibrate").exists()


def test_tables_without_text_are_refused_and_leave_nothing(router, tmp_path):
    pq.write_table(pa.table({"sauce": ["x"] * 60}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="source"):
        run(router, tmp_path / "a.parquet")
    assert not (router / "_calibrate").exists()


def test_a_second_try_with_other_tables_is_no_dead_end(router, stopped, tmp_path):
    stopped(texts(tmp_path / "few.parquet", rows=30))
    assert (router / "_calibrate").exists()
    found, _, sent = run(router, texts(tmp_path / "enough.parquet"))
    assert found.rows == len(sent) == 60
    assert not (router / "_calibrate").exists()


def test_a_second_try_with_another_dtype_scores_anew(router, stopped, tmp_path):
    table = texts(tmp_path / "a.parquet")
    stopped(table)
    _, _, sent = run(router, table, dtype="float16")
    assert len(sent) == 60


def test_a_second_try_with_the_same_tables_scores_nothing_anew(router, stopped, tmp_path):
    table = texts(tmp_path / "a.parquet")
    stopped(table)
    found, _, sent = run(router, table)
    assert found.rows == 60 and not sent


def test_a_damaged_try_is_made_anew(router, stopped, tmp_path):
    table = texts(tmp_path / "a.parquet")
    stopped(table)
    (part,) = (router / "_calibrate").rglob("part-*.parquet")
    part.write_bytes(b"rubbish")
    found, said, sent = run(router, table)
    assert found.rows == len(sent) == 60 and "computed again" in said


def test_directions_without_training_and_rows_without_a_score_are_told(router, tmp_path):
    langs = ["fr"] * 10 + ["de"] * 48 + ["tlh", None]
    table = texts(tmp_path / "a.parquet", target_lang=langs)
    found, said, _ = run(router, table, fails=lambda label, row: "engine_error" if row["row"] == 30 else "")
    assert found.rows == 57
    assert f"{router}: not trained on en-fr; its scores there are a guess" in said
    assert "3 of 60 rows have no score; thresholds come from the others" in said


def test_a_threshold_is_reached_by_the_wanted_fraction_of_held_out_rows():
    scores = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    found = thresholds(scores, [Decimal("0.29"), Decimal("0.1"), Decimal("1")], 10_000)
    for fraction, k in (("0.29", 290), ("0.1", 100), ("1", 1000)):
        assert int((scores >= np.float32(found.thresholds[fraction].value)).sum()) == k
    assert found.quantiles[0] == scores.min() and found.quantiles[-1] == scores.max()


def test_the_interval_holds_95_percent_of_simulated_traffic():
    """Held-out rows and traffic are drawn anew 2,000 times; the realised fraction must fall inside."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(2000):
        held_out = rng.normal(size=200).astype(np.float32)
        found = thresholds(held_out, [Decimal("0.3")], 500).thresholds["0.3"]
        realised = float((rng.normal(size=500) >= found.value).mean())
        inside += found.low <= realised <= found.high
    assert 0.935 <= inside / 2000 <= 0.975


def test_more_held_out_rows_make_the_interval_narrower():
    rng = np.random.default_rng(2)

    def width(rows: int) -> float:
        found = thresholds(rng.normal(size=rows).astype(np.float32), [Decimal("0.3")], 10**6)
        return found.thresholds["0.3"].high - found.thresholds["0.3"].low

    assert width(20_000) < width(2_000) / 2


def test_too_few_rows_or_too_small_a_fraction_are_told():
    with pytest.raises(InputError, match="19 rows with a score: a threshold needs at least 20"):
        thresholds(np.zeros(19, np.float32), [Decimal("0.3")], 100)
    with pytest.raises(UsageError, match="--fraction 0.01: less than one row of 50"):
        thresholds(np.zeros(50, np.float32), [Decimal("0.01")], 100)
