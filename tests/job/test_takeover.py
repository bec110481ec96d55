"""A run that is stopped, replaced by another, and comes back: it changes nothing and ends with words."""

import hashlib
import multiprocessing
import os
import signal
from pathlib import Path

import psutil
import pytest

from routelmt_batch import failpoints
from routelmt_batch.errors import DiskFull, OutputError
from routelmt_batch.job import flow
from routelmt_batch.spec.file import load
from routelmt_batch.store import ledger, workspace
from routelmt_batch.store.log import TakenOver
from routelmt_batch.tokens import load_tokenizer
from tests import oracle
from tests.conftest import MODELS, sampled
from tests.fake_engine import FakeEngine
from tests.job.test_resume import BARS
from tests.waiting import wait_for

pytestmark = [
    pytest.mark.usefixtures("no_page"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]
TAKEN_OVER, REFUSED = 17, 18
PLACES = [
    *(f"{file}.publish.before:1" for file in ("spec", "manifest", "plan", "success")),
    *(f"{file}.publish.before:2" for file in ("scores", "translations", "output", "report")),
    *(f"{file}.publish.after:2" for file in ("scores", "output")),
    *(
        f"{stage}.ledger.{side}:2"
        for stage in ("scores", "translations", "output")
        for side in ("before", "after")
    ),
    *(f"disk.synced:{count}" for count in (12, 38)),
    *(f"disk.named:{count}" for count in (25, 50)),
]


@pytest.fixture(autouse=True)
def short_lease(monkeypatch):
    for name in ("small", "large", "router"):
        load_tokenizer(str(MODELS / name))
    monkeypatch.setattr(ledger, "LEASE_S", 0.3)
    monkeypatch.setattr(ledger, "_LOOK_S", 0.05)


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path / "sent.log")


def start(spec_path: Path, log: Path, failpoint: str) -> multiprocessing.Process:
    """Run the job in a child that stops at the failpoint."""

    def child() -> None:
        os.environ[failpoints.VARIABLE] = f"{failpoint}:stop"
        failpoints._passed.clear()
        try:
            flow.run(load(spec_path), flow.Options(), BARS, FakeEngine(log).opened)
        except TakenOver as error:
            log.with_suffix(".said").write_text(str(error))
            os._exit(TAKEN_OVER)
        except OutputError as error:
            log.with_suffix(".said").write_text(str(error))
            os._exit(REFUSED)
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, failpoint, 20)
    return process


def contents(output: Path) -> dict[str, str]:
    """Every file of a job but parts that nothing names: those of a run that was replaced."""
    named = {
        path for stage in ("scores", "translations", "checks") for path in oracle.committed(output, stage)
    }
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
        and (path in named or path.parent.parent.name != "_job" or path.parent.name in ("log", "plan"))
        and not path.name.endswith("tmp")
    }


@pytest.mark.slow
@pytest.mark.parametrize("place", sampled(PLACES, every=2))
def test_a_stopped_run_that_comes_back_changes_nothing(make_spec, corpus, tmp_path, place):
    spec, output, log = make_spec(), tmp_path / "out", tmp_path / "late.log"
    late = start(spec, log, place)
    try:
        flow.run(load(spec), flow.Options(), BARS, FakeEngine(tmp_path / "sent.log").opened)
        oracle.check(output, corpus, "0.3")
        finished = contents(output)
    finally:
        os.kill(late.pid, signal.SIGCONT)
    late.join(30)
    assert late.exitcode in (TAKEN_OVER, REFUSED), place
    assert contents(output) == finished
    said = log.with_suffix(".said").read_text()
    assert f"by process {os.getpid()} on" in said or f"(process {os.getpid()} on" in said
    assert not flow.run(load(spec), flow.Options(), BARS, FakeEngine(log).opened).new


def test_a_run_that_lives_keeps_its_job(make_spec, tmp_path, monkeypatch):
    """A second one sees a new sign of life, and says whose."""
    spec, log = make_spec(), tmp_path / "sent.log"
    monkeypatch.setattr(ledger, "LEASE_S", 30)
    monkeypatch.setattr(ledger, "SIGN_OF_LIFE_S", 0.2)
    monkeypatch.setattr(ledger, "_GROUP_S", 0.05)

    class Meddling(FakeEngine):
        def run(self, lanes, tell):
            with pytest.raises(OutputError, match=rf"another run holds this job \(process {os.getpid()} on"):
                flow.run(load(spec), flow.Options(), BARS, FakeEngine(log).opened)
            return super().run(lanes, tell)

    flow.run(load(spec), flow.Options(), BARS, Meddling(log).opened)


def test_a_run_that_was_overtaken_before_its_first_commit_says_so(make_spec, tmp_path, engine, monkeypatch):
    """Another run works on the finished job while this one still reads its input."""
    spec = make_spec(run__max_failed_fraction=0.5)
    engine.fails = lambda label, row: "engine_error" if row["row"] == 1 else ""
    flow.run(load(spec), flow.Options(), BARS, engine.opened)
    engine.fails = lambda label, row: ""
    usual = workspace.find_input

    def slow(*args):
        monkeypatch.setattr(workspace, "find_input", usual)
        flow.run(load(spec), flow.Options(retry_failed=True), BARS, engine.opened)
        return usual(*args)

    monkeypatch.setattr(workspace, "find_input", slow)
    with pytest.raises(OutputError, match="another run (worked on|began) this job"):
        flow.run(load(spec), flow.Options(retry_failed=True), BARS, engine.opened)
    assert not flow.run(load(spec), flow.Options(), BARS, engine.opened).new


def test_a_manifest_that_could_not_be_written_twice_is_no_dead_end(make_spec, corpus, tmp_path, monkeypatch):
    spec, log = make_spec(), tmp_path / "sent.log"
    engine = FakeEngine(log)
    with engine.stopping(lambda label, row: label == "small"):
        flow.run(load(spec), flow.Options(), BARS, engine.opened)
    other = ("checks.enabled=false",)  # of a stage without work: the manifest changes
    for _ in range(2):
        monkeypatch.setenv(failpoints.VARIABLE, "manifest.write:1:enospc")
        failpoints._passed.clear()
        with pytest.raises(DiskFull):
            flow.run(load(spec, other), flow.Options(), BARS, engine.opened)
    monkeypatch.delenv(failpoints.VARIABLE)
    flow.run(load(spec, other), flow.Options(), BARS, engine.opened)
    oracle.check(tmp_path / "out", corpus, "0.3")
