"""Checks in a job, on a made-up engine that says what it is told to."""

import io

import pytest
from rich.console import Console

from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from tests.conftest import write_shard
from tests.fake_engine import FakeEngine
from tests.stages.test_guard import BARS, calls, output

pytestmark = pytest.mark.usefixtures("no_page")
GOOD = "Das Haus am Fluss ist alt und sehr schön geworden."
SOURCE = "the house by the river is old and has become very nice"
SAYS = {
    0: GOOD,
    1: SOURCE,  # copied
    2: "Das Haus und das Haus und das Haus und das Haus und das Haus und das Haus und",
    3: "Привет, как у тебя дела сегодня вечером, мой дорогой друг?",
    4: "Ja.",
}


class Saying(FakeEngine):
    """The small model says SAYS by row, the large one what is good."""

    def _answer(self, lane, line):
        text = SAYS[line["row"]] if lane.label == "small" else GOOD
        return super()._answer(lane, line)._replace(text=text)


@pytest.fixture
def engine(tmp_path):
    return Saying(tmp_path / "sent.log")


@pytest.fixture
def corpus(tmp_path):
    write_shard(tmp_path / "corpus/a.parquet", [SOURCE] * 5, row_group_size=2)
    return tmp_path / "corpus"


def run(spec, engine, *settings):
    return flow.run(load(spec, settings), flow.Options(), BARS, engine.opened)


def test_doubtful_translations_have_a_reason_and_are_counted(make_spec, tmp_path, engine):
    report = run(make_spec(budget__fraction=0), engine).report.as_json()
    rows = output(tmp_path / "out")
    assert [rows["a.parquet", i]["reason"] for i in range(5)] == [
        None,
        "copied_source",
        "repetition",
        "wrong_script",
        "length_ratio",
    ]
    assert all(row["status"] == "ok" for row in rows.values())
    expected = {"copied_source": 1, "repetition": 1, "wrong_script": 1, "length_ratio": 1}
    assert {slug: report["checks"][slug] for slug in expected} == expected


def test_held_back_places_need_no_metric(make_spec, tmp_path, engine):
    spec = make_spec(budget__fraction=0.6, guard={"escalate_fraction": 0.6})
    report = run(spec, engine).report.as_json()
    rows = output(tmp_path / "out")
    assert report["planned_route"] == {"small": 5}
    escalated = {key[1] for key, row in rows.items() if row["reason"] == "escalated"}
    assert len(escalated) == 3 and 0 not in escalated
    assert {row for _, row in calls(engine, "large")} == escalated
    assert sum(report["checks"].values()) < 4, "what is escalated is no longer doubtful"


def test_checks_can_be_left_out(make_spec, tmp_path, engine):
    report = run(make_spec(budget__fraction=0, checks={"enabled": False}), engine).report.as_json()
    assert report["checks"] == {} and not report["reason"]


def test_checks_that_are_asked_for_too_late_are_told(make_spec, engine):
    spec, told = make_spec(budget__fraction=0), io.StringIO()
    run(spec, engine, "checks.enabled=false")
    bars = Bars(Console(file=told, width=200))
    assert not flow.run(load(spec), flow.Options(), bars, engine.opened).new
    assert "finished without checks" in told.getvalue()
    assert not flow.run(load(spec, ["checks.enabled=false"]), flow.Options(), bars, engine.opened).new
    assert bars.warnings == 1


def test_a_resumed_job_checks_nothing_twice(make_spec, tmp_path, engine):
    spec = make_spec(budget__fraction=0)
    run(spec, engine)
    (tmp_path / "out/_SUCCESS").unlink()
    before = len(engine.lanes_together)
    run(spec, engine)
    assert len(engine.lanes_together) == before


def test_a_text_that_breaks_the_checks_is_a_doubt(make_spec, tmp_path, engine, monkeypatch):
    from routelmt_batch.stages import check

    def breaks(sources, translations, *rest):
        if SAYS[2] in translations:
            raise IndexError("on some text")
        return [[] for _ in translations]

    monkeypatch.setattr(check, "check_translations", breaks)
    report = run(make_spec(budget__fraction=0), engine).report.as_json()
    assert report["checks"] == {"not_checked": 1}
    assert output(tmp_path / "out")["a.parquet", 2]["reason"] == "not_checked"
