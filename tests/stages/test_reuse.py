"""A job takes what earlier jobs have, and nothing that anything changed for."""

import shutil
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from routelmt_batch.errors import OutputError, SpecError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from routelmt_batch.stages import stretches
from tests import oracle
from tests.conftest import MODELS, write_shard
from tests.fake_engine import FakeEngine
from tests.job.test_resume import run_armed

pytestmark = pytest.mark.usefixtures("no_page")
QUIET = Bars(Console(quiet=True), quiet=True)
TEXTS = [f"Text {i}." for i in range(40)]


class Night:
    """A night's job in a folder: its corpus, its output, and the rows that it sends to each engine."""

    def __init__(self, folder: Path, make_spec, name: str) -> None:
        self.root, self.corpus, self.output = folder, folder / name, folder / "runs" / name
        self.engine = FakeEngine(folder / f"{name}.log")
        self._make_spec = make_spec

    def shard(self, name: str, texts: list[str | None], **columns) -> None:
        write_shard(self.corpus / name, texts, row_group_size=7, **columns)

    def spec(self, **keys) -> Path:
        given = {"input__uri": str(self.corpus), "input__fold": "exact", "output__uri": str(self.output)}
        return self._make_spec(**given, **keys)

    def run(self, **keys) -> flow.Outcome:
        return flow.run(load(self.spec(**keys), ()), flow.Options(), QUIET, self.engine.opened)

    def sent(self, label: str) -> set[tuple[str, int]]:
        if not self.engine.log.exists():
            return set()
        lines = (line.split() for line in self.engine.log.read_text().splitlines())
        return {(shard, int(row)) for name, shard, row in lines if name == label}

    def rows(self) -> dict[str, list[dict]]:
        """Output rows by text."""
        found: dict[str, list[dict]] = {}
        for path in sorted((self.output / "data").rglob("*.parquet")):
            for line in pq.read_table(path).to_pylist():
                found.setdefault(line["text"], []).append(line)
        return found


@pytest.fixture
def night(tmp_path, make_spec):
    return lambda name: Night(tmp_path, make_spec, name)


@pytest.fixture
def first(night):
    """Last night: 40 texts, some of them twice, a text that is too long, and rows that are not translated."""
    job = night("1")
    job.shard("a.parquet", [*TEXTS[:25], *TEXTS[:5]])
    job.shard("b.parquet", [*TEXTS[25:], None, "", "far too long " * 200])
    job.run()
    return job


def test_the_same_corpus_again_is_no_call_and_no_engine(night, first):
    job = night("2")
    shutil.copytree(first.corpus, job.corpus)
    report = job.run(reuse=[str(first.output)]).report
    assert not job.engine.log.exists()
    assert [label for labels in job.engine.lanes_together for label in labels if "check" not in label] == []
    oracle.check(job.output, job.corpus, "0.3")
    assert job.rows() == first.rows()
    assert report.calls == {"score": 0, "small": 0, "large": 0}
    assert report.reused_rows == {"score": 40, "small": 28, "large": 12}
    assert report.tokens["small"] == report.tokens["large"] == {"in": 0, "out": 0}
    assert (report.reuse[0].output, report.reuse[0].changed) == (str(first.output), {})


@pytest.mark.parametrize("stretch_rows", [1 << 19, 9])
def test_a_small_change_is_exactly_the_changed_texts(night, first, monkeypatch, stretch_rows):
    monkeypatch.setattr(stretches, "_ROWS", stretch_rows)
    job = night("2")
    job.shard("x/moved.parquet", [*TEXTS[20:], "New.", None, *TEXTS[:20]])
    job.shard("y.parquet", ["New.", "Other language."], to=pa.array(["de", "fr"]))
    job.shard("z.parquet", TEXTS[:3], to=pa.array(["fr"] * 3))
    report = job.run(reuse=[str(first.output)]).report
    new = {("x/moved.parquet", 20), ("y.parquet", 1), *(("z.parquet", row) for row in range(3))}
    assert job.sent("router") == new
    oracle.check(job.output, job.corpus, "0.3")
    assert new <= job.sent("small") | job.sent("large")
    # A text whose place in the order changed may need the other model.
    before, after = first.rows(), job.rows()
    for text in TEXTS:
        old, mine = before[text][0], after[text][0]
        assert mine["predicted_gain"] == old["predicted_gain"]
        if old["route"] == "large" or mine["planned_route"] == "small":
            assert (mine["translation"], mine["route"]) == (old["translation"], old["route"])
    assert report.reused_rows["score"] == 40
    assert report.calls["score"] == len(new)


def test_a_large_translation_is_taken_whatever_the_plan(night, first):
    large = {text for text, rows in first.rows().items() if rows[0]["route"] == "large"}
    taken, kept = night("2"), night("3")
    for job, upgrade in ((taken, True), (kept, False)):
        shutil.copytree(first.corpus, job.corpus)
        reuse = {"outputs": [str(first.output)], "upgrade": upgrade}
        job.run(reuse=reuse, budget__fraction=0)
        oracle_rows = job.rows()
        assert all(row["planned_route"] in ("small", None) for rows in oracle_rows.values() for row in rows)
        routed = {text for text, rows in oracle_rows.items() if rows[0]["route"] == "large"}
        assert routed == (large if upgrade else set())
    assert not taken.engine.log.exists()
    assert len(kept.sent("small")) == len(large) and not kept.sent("router")


LENGTH = {"router__kind": "length", "router__source": str(MODELS / "small")}


@pytest.mark.parametrize(
    ("keys", "again", "because"),
    [
        (
            {"models__large__engine": {"enforce_eager": True, "seed": 4}},
            {"large"},
            "models.large.engine.seed",
        ),
        ({"models__small__engine": {"seed": 4}}, {"small"}, "models.small.engine.seed"),
        ({"router__kind": "random", "router__source": ""}, {"router"}, "router.kind"),
        ({"models__small__max_output_tokens": 63}, {"small"}, "models.small.max_output_tokens"),
        (
            {"prompt__template": "{source_lang} to {target_lang}: {source}"},
            {"router", "small", "large"},
            "prompt.template",
        ),
    ],
)
def test_what_changed_is_made_again_and_nothing_else(night, keys, again, because):
    before, job = night("1"), night("2")
    for one in (before, job):
        one.shard("a.parquet", [*TEXTS, *TEXTS[:9]])
    before.run(**LENGTH)
    report = job.run(reuse=[str(before.output)], **{**LENGTH, **keys}).report
    oracle.check(job.output, job.corpus, "0.3")
    (reused,) = report.reuse
    kinds = {"score" if label == "router" else label for label in again}
    assert set(reused.changed) == kinds
    for changed in reused.changed.values():
        assert because in changed.because and changed.calls
    taken = {kind for kind, calls in reused.taken.items() if calls}
    assert taken == {"score", "small", "large"} - kinds
    if "router" in again:
        return  # another score may change the plan
    assert {label for label in ("router", "small", "large") if job.sent(label)} == again


def test_failed_texts_are_tried_again(night):
    before = night("1")
    before.shard("a.parquet", TEXTS[:10])
    before.engine.fails = lambda label, row: "broken" if row["row"] == 4 and label != "router" else ""
    before.run(run__max_failed_fraction=1, run__retries=0)
    job = night("2")
    shutil.copytree(before.corpus, job.corpus)
    job.run(reuse=[str(before.output)])
    assert job.sent("small") | job.sent("large") == {("a.parquet", 4)} and not job.sent("router")
    oracle.check(job.output, job.corpus, "0.3")


def test_the_first_output_counts_and_a_glob_begins_with_the_last(night, tmp_path):
    for name in ("1", "2"):
        job = night(name)
        job.shard("a.parquet", TEXTS[:10] if name == "1" else ["other", *TEXTS[:8]])
        job.run(budget__fraction=0)
    again = {"outputs": [str(tmp_path / "runs/*")]}, {"latest": 1}, [str(tmp_path / "runs/2")]
    for number, given in enumerate(again, 3):
        job = night(str(number))
        job.shard("a.parquet", TEXTS[:10])
        report = job.run(reuse=given, budget__fraction=0).report
        assert job.rows()["Text 3."][0]["translation"] == "small of 4", "the second night's row"
        if number == 3:
            assert not job.engine.log.exists()
            assert [found.taken["small"] for found in report.reuse] == [8, 2]
        shutil.rmtree(job.output)


def test_deleting_the_earlier_job_changes_nothing(night, first):
    job = night("2")
    job.shard("a.parquet", [*TEXTS[:20], "New."])
    spec = job.spec(reuse=[str(first.output)])
    assert run_armed(spec, job.engine.log, "scores.ledger.after:1") == -signal.SIGKILL
    shutil.rmtree(first.output)
    flow.run(load(spec, ()), flow.Options(), QUIET, job.engine.opened)
    oracle.check(job.output, job.corpus, "0.3")
    assert job.sent("router") == {("a.parquet", 20)}


@pytest.mark.parametrize(
    "place", ["exchange.write:2", "scores.publish.after:1", "reuse.ledger.before:1", "reuse.ledger.after:1"]
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_anywhere_it_goes_on(night, first, place):
    job = night("2")
    job.shard("a.parquet", [*TEXTS[:20], "New.", *TEXTS[:3]])
    spec = job.spec(reuse=[str(first.output)])
    assert run_armed(spec, job.engine.log, place) == -signal.SIGKILL
    flow.run(load(spec, ()), flow.Options(), QUIET, job.engine.opened)
    oracle.check(job.output, job.corpus, "0.3")
    assert job.sent("router") == {("a.parquet", 20)}
    stages = [
        path
        for path in (job.output / "_job").glob("*/*.parquet")
        if path.parent.name in ("scores", "translations")
    ]
    assert {path.name for path in stages} == {
        path.name for stage in ("scores", "translations") for path in oracle.committed(job.output, stage)
    }


def test_bad_outputs_are_named(night, first, tmp_path):
    job = night("2")
    shutil.copytree(first.corpus, job.corpus)
    for given, error, words in (
        ([str(tmp_path / "runs/none")], OutputError, "no such output"),
        ([str(tmp_path / "runs/none*")], OutputError, "no such output"),
        ([str(first.corpus)], OutputError, "no job there"),
        ({"latest": 0}, SpecError, "latest"),
        ({"latest": 2, "outputs": ["a"]}, SpecError, "either outputs or latest"),
        ([str(tmp_path / "*/1")], SpecError, "only the last name"),
        ([], SpecError, "either outputs or latest"),
    ):
        with pytest.raises(error, match=words):
            job.run(reuse=given)
        assert not (job.output / "data").exists()


def test_a_job_that_is_not_finished_is_left_out(night, first):
    (first.output / "_SUCCESS").unlink()
    job = night("2")
    shutil.copytree(first.corpus, job.corpus)
    report = job.run(reuse=[str(first.output)]).report
    assert report.reuse == [] and job.sent("router")


def test_a_shard_that_changed_is_refused(night, first):
    path = first.output / "data/a.parquet"
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    job = night("2")
    shutil.copytree(first.corpus, job.corpus)
    with pytest.raises(OutputError, match=r"a\.parquet: is not what its job wrote"):
        job.run(reuse=[str(first.output)])
