"""Rows with the same text and languages are one call, from the plan to the reports."""

import hashlib
import json
import signal
from itertools import product
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from routelmt_batch.errors import OutputError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from routelmt_batch.stages import exchange, stretches
from routelmt_batch.store.folder import Folder
from tests import oracle
from tests.conftest import sampled, with_references, write_shard
from tests.fake_engine import FakeEngine
from tests.job.test_resume import run_armed

pytestmark = pytest.mark.usefixtures("no_page")
BARS = Bars(Console(quiet=True), quiet=True)
Key = tuple[str, int]
UNTRANSLATED = {("b.parquet", 12), ("b.parquet", 13), ("b.parquet", 14)}
TOO_LONG = ("d/f.parquet", 0)
SAME = [("a.parquet", 3), ("b.parquet", 16)]  # one text


def run(spec: Path, engine: FakeEngine, **options) -> flow.Outcome:
    return flow.run(load(spec, ()), flow.Options(**options), BARS, engine.opened)


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path / "sent.log")


@pytest.fixture
def repeated(tmp_path) -> Path:
    """Five shards in which half of the texts occur again: beside their first, in other row groups and shards,
    in another direction (another call), and as rows that are not translated (no call)."""
    root = tmp_path / "repeated"
    texts = [f"Text {i}." for i in range(30)]
    write_shard(root / "a.parquet", texts[:20] + texts[5:15] + texts[:2] * 4, row_group_size=7)
    write_shard(root / "b.parquet", [*texts[18:], None, "", "", *texts[2:4]], row_group_size=5)
    write_shard(root / "c.parquet", texts[:4] * 2, to=pa.array(["fr"] * 8))
    write_shard(root / "d/e.parquet", ["Only here."])
    write_shard(root / "d/f.parquet", ["far too long " * 200, *texts[-2:], "far too long " * 200])
    return root


@pytest.fixture
def folding(make_spec, repeated):
    return lambda **keys: make_spec(input__uri=str(repeated), input__fold="exact", **keys)


def firsts(output: Path, corpus: Path) -> set[Key]:
    """The first row of each call, without the rows that are not translated."""
    return {rows[0] for rows in oracle.calls(output, corpus).values()} - UNTRANSLATED


def sent(engine: FakeEngine, *labels: str) -> list[Key]:
    lines = (line.split() for line in engine.log.read_text().splitlines())
    return [(shard, int(row)) for name, shard, row in lines if name in labels]


@pytest.mark.parametrize("stretch_rows", [1 << 19, 10, 1], ids=["one", "some", "each unit"])
@pytest.mark.parametrize("fraction", ["0", "0.3", "1"])
def test_each_text_is_one_call(folding, repeated, tmp_path, engine, fraction, stretch_rows, monkeypatch):
    monkeypatch.setattr(stretches, "_ROWS", stretch_rows)
    report = run(folding(budget__fraction=fraction), engine).report
    output = tmp_path / "out"
    oracle.check(output, repeated, fraction)
    calls = firsts(output, repeated)
    assert sorted(sent(engine, "router")) == sorted(calls | UNTRANSLATED)
    translated = sent(engine, "small", "large")
    assert sorted(translated) == sorted(calls - {TOO_LONG})
    assert report.calls["small"] + report.calls["large"] == len(translated) == 35
    assert report.folded_rows == 29
    assert not list((output / "_job").glob("exchange*"))


def test_without_fold_each_row_is_a_call(make_spec, repeated, tmp_path, engine):
    report = run(make_spec(input__uri=str(repeated)), engine).report
    oracle.check(tmp_path / "out", repeated, "0.3")
    assert report.folded_rows == 0
    with pytest.raises(OutputError, match=r"input\.fold"):
        run(make_spec(input__uri=str(repeated), input__fold="exact"), engine)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shards=st.lists(
        st.lists(st.sampled_from(["a", "b", "c ", "c", "d\n", "", "e" * 40]), max_size=12),
        min_size=1,
        max_size=4,
    ),
    fraction=st.sampled_from(["0", "0.1", "0.34", "0.5", "0.999", "1"]),
    stretch_rows=st.integers(1, 20),
)
def test_any_corpus(make_spec, tmp_path_factory, monkeypatch, shards, fraction, stretch_rows):
    monkeypatch.setattr(stretches, "_ROWS", stretch_rows)
    folder = tmp_path_factory.mktemp("any")
    for number, texts in enumerate(shards):
        write_shard(folder / "in" / f"{number}.parquet", texts, row_group_size=3)
    spec = make_spec(
        input__uri=str(folder / "in"),
        input__fold="exact",
        output__uri=str(folder / "out"),
        budget__fraction=fraction,
        run__max_skipped_fraction=1,
    )
    run(spec, FakeEngine(folder / "sent.log"))
    oracle.check(folder / "out", folder / "in", fraction)


def test_codes_that_mean_the_same_language_are_one_call(make_spec, tmp_path, engine):
    write_shard(tmp_path / "in/a.parquet", ["Same."] * 4, to=pa.array(["de", "DE", "deu", "fr"]))
    report = run(make_spec(input__uri=str(tmp_path / "in"), input__fold="exact"), engine).report
    assert (report.folded_rows, report.calls["score"]) == (2, 2)


def test_texts_whose_hashes_are_equal_are_not_mixed(folding, tmp_path, engine, monkeypatch):
    class Weak:
        def __init__(self, data: bytes, digest_size: int) -> None:
            self.data = data

        def digest(self) -> bytes:
            return bytes([hashlib.sha256(self.data).digest()[0] % 16]) * 16

    monkeypatch.setattr(stretches.hashlib, "blake2b", Weak)
    run(folding(run__max_failed_fraction=1), engine)
    lines = {
        (path.relative_to(tmp_path / "out/data").as_posix(), row): line
        for path in (tmp_path / "out/data").rglob("*.parquet")
        for row, line in enumerate(pq.read_table(path).to_pylist())
    }
    collided = [line for line in lines.values() if line["reason"] == "hash_collision"]
    assert collided and all(line["status"] == "failed" and line["translation"] is None for line in collided)
    translated = [line for line in lines.values() if line["translation"]]
    own = [(lines[key]["text"], lines[key]["to"]) for key in sent(engine, "small", "large")]
    assert {(line["text"], line["to"]) for line in translated} <= set(own)


def test_failed_calls_are_tried_again_and_reach_every_row(folding, repeated, tmp_path, engine):
    first = SAME[0]
    engine.fails = lambda label, row: "broken" if (row["shard"], row["row"]) == first else ""
    report = run(folding(run__max_failed_fraction=1, run__retries=0), engine).report
    assert report.exit_code == 3 and report.status["failed"] == len(SAME)
    engine.fails = lambda label, row: ""
    report = run(folding(run__max_failed_fraction=1, run__retries=0), engine, retry_failed=True).report
    assert report.exit_code == 0 and report.status["failed"] == 0
    rows = oracle.check(tmp_path / "out", repeated, "0.3")
    assert all(rows[key]["translation"] for key in SAME)


def test_a_guard_and_an_audit_work_on_calls(make_spec, repeated, tmp_path, engine):
    column = with_references(repeated)
    spec = make_spec(
        input__uri=str(repeated),
        input__fold="exact",
        input__columns={"source": "text", "source_lang": "from", "target_lang": "to", "reference": column},
        metric="chrf",
        guard={"mode": "hypothesis", "keep_small_above": 20, "escalate_fraction": 0.1},
        audit={"fraction": 0.5, "min_rows": 1},
    )
    report = run(spec, engine).report
    calls = firsts(tmp_path / "out", repeated) - {TOO_LONG}
    assert set(sent(engine, "small", "large")) == calls
    assert report.guard and report.guard.calls["large"] <= report.budget.places + report.guard.held_back
    assert report.audit and sum(report.audit.strata.values()) == len(calls)
    assert sum(report.status.values()) == report.rows == len(oracle.calls(tmp_path / "out", repeated))


def test_what_a_killed_run_left_is_removed(folding, tmp_path, engine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(exchange, "remove_folder", lambda folder: None)
        run(folding(), engine)
    assert list((tmp_path / "out/_job").glob("exchange-*/*.arrow"))
    (tmp_path / "out/_SUCCESS").unlink()
    run(folding(), engine)
    assert not list((tmp_path / "out/_job").glob("exchange*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("place", "time"),
    sampled(
        [
            *product(
                [
                    f"{place}.{step}"
                    for place in ("exchange", "folds", "followers")
                    for step in ("write", "publish.before", "publish.after")
                ],
                (1, 2),
            ),
            *product(["fold.ledger.before", "followers.ledger.before", "followers.ledger.after"], (1,)),
        ],
        every=5,
    ),
)
def test_killed_anywhere_it_goes_on(folding, repeated, tmp_path, place, time, monkeypatch):
    monkeypatch.setattr(stretches, "_ROWS", 10)
    spec, log = folding(), tmp_path / "sent.log"
    assert run_armed(spec, log, f"{place}:{time}") == -signal.SIGKILL, "the failpoint is on the way"
    run(spec, FakeEngine(log))
    oracle.check(tmp_path / "out", repeated, "0.3")
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)), "no row goes to an engine twice"
    assert not list((tmp_path / "out/_job").glob("exchange*"))
    assert json.loads((tmp_path / "out/reports/job.json").read_text())["folded_rows"] == 29


def test_a_running_job_counts_calls(folding, tmp_path, engine):
    with engine.stopping(lambda label, row: label == "small"):
        run(folding(), engine)
    stages = flow.progress(Folder.at(str(tmp_path / "out")))
    assert stages["score"] == [39, 39]
    assert stages["translate large"] == [10, 10] and stages["translate small"] == [0, 25]
