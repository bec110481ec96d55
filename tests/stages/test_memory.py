"""A translation memory that jobs share: what it gives, what it keeps, and what may happen to it."""

import json
from pathlib import Path

import pytest

from routelmt_batch.errors import OutputError
from routelmt_batch.stages import memory
from tests import oracle
from tests.stages.test_reuse import TEXTS, Night

pytestmark = pytest.mark.usefixtures("no_page")
LABELS = ("router", "small", "large")


@pytest.fixture
def run(tmp_path, make_spec):
    """Runs a night's job on some texts with the memory of this folder."""

    def night(name: str, texts: list[str | None], **keys) -> Night:
        job = Night(tmp_path, make_spec, name)
        job.shard("a.parquet", texts)
        job.report = job.run(translation_memory=str(tmp_path / "memory"), **keys).report
        oracle.check(job.output, job.corpus, str(keys.get("budget__fraction", "0.3")))
        return job

    return night


def sent(job: Night) -> set[str]:
    return {label for label in LABELS if job.sent(label)}


def files(folder: Path) -> list[Path]:
    return sorted((folder / "memory").rglob("*.parquet"))


def test_the_next_job_finds_what_was_made(run, tmp_path):
    first = run("1", [*TEXTS, None, "far too long " * 200])
    again = run("2", [None, *TEXTS, "far too long " * 200])
    assert not sent(again)
    assert again.report.reused_rows == {"score": 40, "small": 28, "large": 12}
    assert {text: rows[0]["translation"] for text, rows in again.rows().items()} == {
        text: rows[0]["translation"] for text, rows in first.rows().items()
    }
    more = run("3", [*TEXTS[:10], "New."])
    assert more.sent("router") == {("a.parquet", 10)}
    assert len(files(tmp_path)) == 1, "each job writes a division as one file"
    (line,) = json.loads((more.output / "reports/job.json").read_text())["reuse"]
    assert (line["output"], line["success"]) == (str(tmp_path / "memory"), None)


def test_both_models_translations_of_a_text_are_kept(run):
    run("1", TEXTS, budget__fraction=0)
    other = run("2", TEXTS, budget__fraction=1)
    assert sent(other) == {"large"} and other.report.reused_rows["small"] == 40
    third = run("3", TEXTS, budget__fraction=0.5)
    assert third.report.reused_rows == {"score": 40, "small": 40, "large": 40} and not sent(third)


def test_what_another_model_made_stays_beside_it(run):
    seed = {"models__small__engine": {"seed": 4}}
    run("1", TEXTS, budget__fraction=0)
    assert sent(run("2", TEXTS, budget__fraction=0, **seed)) == {"small"}
    assert not sent(run("3", TEXTS, budget__fraction=0))
    assert not sent(run("4", TEXTS, budget__fraction=0, **seed))


def test_divisions_follow_the_first_job(run, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_DIVISION_ROWS", 10)
    run("1", TEXTS)
    assert len(files(tmp_path)) == 4
    assert not sent(run("2", TEXTS * 3))
    assert len(files(tmp_path)) == 4


def test_files_of_two_jobs_at_once_are_joined(run, tmp_path):
    run("1", TEXTS[:20], budget__fraction=0)
    (one,) = files(tmp_path)
    data = one.read_bytes()
    one.unlink()
    run("2", TEXTS[20:], budget__fraction=0)
    one.write_bytes(data)  # as if the second job had not seen the first one's file
    assert len(files(tmp_path)) == 2
    assert not sent(run("3", TEXTS, budget__fraction=0))
    assert len(files(tmp_path)) == 1


def test_a_damaged_file_costs_calls_and_nothing_else(run, tmp_path):
    run("1", TEXTS[:20])
    (damaged,) = files(tmp_path)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert len(run("2", TEXTS[:20]).sent("router")) == 20
    assert damaged in files(tmp_path), "what cannot be read is not removed"
    assert not sent(run("3", TEXTS[:20]))


def test_what_is_no_file_of_the_memory_is_left_alone(run, tmp_path):
    run("1", TEXTS)
    others = [
        tmp_path / "memory" / name for name in ("division=x/a.parquet", "division=7/a.parquet", "b.parquet")
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(b"somebody's")
    assert not sent(run("2", TEXTS))
    assert all(other.read_bytes() == b"somebody's" for other in others)


def test_a_damaged_layout_is_told_before_anything_is_paid_for(run, tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.json").write_text("[]")
    with pytest.raises(OutputError, match=r"memory\.json is damaged. Remove the folder"):
        run("1", TEXTS)
    assert not (tmp_path / "1.log").exists()


def test_a_memory_that_cannot_be_written_ends_no_job(run, tmp_path):
    (tmp_path / "memory").write_text("a file")
    job = run("1", TEXTS)
    assert job.report.exit_code == 0
    assert (tmp_path / "memory").read_text() == "a file"
