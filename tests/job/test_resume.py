"""A job killed at any commit boundary goes on: each row once, committed parts untouched, plan exact."""

import multiprocessing
import os
import signal
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from routelmt_batch import failpoints
from routelmt_batch.errors import DiskFull, OutputError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from routelmt_batch.tokens import load_tokenizer
from tests import oracle
from tests.conftest import MODELS, sampled
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("no_page")
BARS = Bars(Console(quiet=True), quiet=True)
PARTS = [
    f"{stage}.{step}"
    for stage in ("scores", "translations")
    for step in ("write", "publish.before", "publish.after")
]
LEDGER = [
    f"{place}.ledger.{side}"
    for place in ("scores", "translations", "pass", "output")
    for side in ("before", "after")
]
# Each file of the job: synced but without its name, and named but with its folder not synced.
DISK = ("disk.synced", "disk.named")
SHARDS, ONCE = (
    [f"{place}.{step}" for place in places for step in ("publish.before", "publish.after")]
    for places in (("output", "report"), ("spec", "manifest", "plan", "success"))
)


def run_armed(spec_path: Path, log: Path, failpoint: str) -> int:
    """Run the job in a child that dies at the failpoint; give its exit code."""

    def child() -> None:
        os.environ[failpoints.VARIABLE] = failpoint
        flow.run(load(spec_path), flow.Options(), BARS, FakeEngine(log).opened)
        os._exit(0)

    # Forked, so that a hundred children need not import and load a tokenizer each.
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.fixture(scope="module", autouse=True)
def loaded():
    for name in ("small", "large", "router"):
        load_tokenizer(str(MODELS / name))


def committed_rows(output: Path) -> set[str]:
    import pyarrow.parquet as pq

    rows = set()
    for path in map(Path, oracle.digests(output)):
        table = pq.read_table(path)
        for line in table.select(["shard", "row"]).to_pylist():
            rows.add(
                f"{'router' if path.parent.name == 'scores' else path.name[:5]} {line['shard']} {line['row']}"
            )
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("failpoint", "time"),
    [
        *sampled(product([*PARTS, *LEDGER, *SHARDS], (1, 3)), every=2),
        *product(ONCE, (1,)),
        *sampled(product(DISK, (2, 9, 17, 24, 31, 38)), every=2),
    ],
)
def test_killed_at_a_commit_boundary_it_goes_on(make_spec, corpus, tmp_path, failpoint, time):
    spec, output, log = make_spec(), tmp_path / "out", tmp_path / "sent.log"
    assert run_armed(spec, log, f"{failpoint}:{time}") == -signal.SIGKILL, "the failpoint is on the way"
    before, committed = oracle.digests(output), committed_rows(output)
    log.unlink(missing_ok=True)
    outcome = flow.run(load(spec), flow.Options(), BARS, FakeEngine(log).opened)
    assert outcome.report.as_json()["rows"] == 71
    again = set(log.read_text().splitlines()) if log.exists() else set()
    assert not again & committed, "no committed row goes to an engine again"
    after = oracle.digests(output)
    assert {path: after[path] for path in before} == before, "committed parts stay byte-identical"
    oracle.check(output, corpus, "0.3")
    assert not list(output.rglob("*tmp")), "nothing half-written is left"
    for stage in ("scores", "translations"):
        assert set((output / "_job" / stage).iterdir()) == set(oracle.committed(output, stage))


def test_a_missing_committed_part_is_refused(make_spec, tmp_path):
    spec, output, log = make_spec(), tmp_path / "out", tmp_path / "sent.log"
    assert run_armed(spec, log, "plan.write:1") == -signal.SIGKILL
    next((output / "_job/scores").glob("*.parquet")).unlink()
    with pytest.raises(OutputError, match="is missing; .* rows of scores were committed in it"):
        flow.run(load(spec), flow.Options(), BARS, FakeEngine(log).opened)


@pytest.mark.parametrize(
    "place", ["scores.write", "translations.publish.before", "output.write", "plan.write"]
)
def test_a_full_disk_is_told_and_nothing_is_lost(make_spec, corpus, tmp_path, monkeypatch, place):
    spec, output, log = make_spec(), tmp_path / "out", tmp_path / "sent.log"
    monkeypatch.setenv(failpoints.VARIABLE, f"{place}:1:enospc")
    monkeypatch.setattr(failpoints, "_passed", type(failpoints._passed)())
    with pytest.raises(DiskFull, match="no space left .* Free space and run the same command again"):
        flow.run(load(spec), flow.Options(), BARS, FakeEngine(log).opened)
    assert not list(output.rglob("*tmp"))
    monkeypatch.delenv(failpoints.VARIABLE)
    flow.run(load(spec), flow.Options(), BARS, FakeEngine(log).opened)
    oracle.check(output, corpus, "0.3")
