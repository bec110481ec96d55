"""`clean`: a finished job's work files go, the job stays; killed in the midst, it is finished none the less."""

import json
import multiprocessing
import os
import shutil
import signal

import pytest

from routelmt_batch import failpoints
from routelmt_batch.job.clean import CLEARED, clean
from routelmt_batch.progress import Bars
from routelmt_batch.store.folder import Folder
from tests.cli.test_ending import last_line, two_rows_fail

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def files(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def work_files(out) -> list:
    return [path for stage in CLEARED for path in (out / "_job" / stage.name).glob("*")]


def test_work_files_go_and_nothing_else(invoke, make_spec, out):
    invoke("run", make_spec())
    before, work = files(out), work_files(out)
    size = sum(path.stat().st_size for path in work)
    dry = invoke("clean", out, "--dry-run")
    assert f"{len(list((out / '_job/scores').iterdir()))} " in dry.stdout and "would be freed" in dry.stdout
    assert files(out) == before, "a dry run removes nothing"
    answer = invoke("clean", out)
    assert answer.exit_code == 0 and f"freed {size / 1000:.1f} kB" in answer.stdout
    after = files(out)
    assert before.keys() - after.keys() == {path.relative_to(out) for path in work}
    assert {path.parent.name for path in after.keys() - before.keys()} == {"log"}
    assert all(after[path] == before[path] for path in after.keys() & before.keys())
    again = invoke("clean", out)
    assert again.exit_code == 0 and "nothing to clean" in again.stdout and files(out) == after


def test_a_cleaned_job_is_a_finished_job(invoke, make_spec, out, tmp_path):
    spec, other = make_spec(), tmp_path / "other"
    invoke("run", spec)
    invoke("run", spec, "--output", other, "--budget", "0.5")
    reads = [
        ["report", out],
        ["report", out, "--json"],
        ["report", out, "--rates"],
        ["report", out, "--against", other, "--json"],
        ["report", other, "--against", out, "--json"],
        ["run", spec],
        ["run", spec, "--retry-failed"],
        ["run", spec, "--dry-run"],
    ]
    invoke("run", spec, "--fail-if", "ks>0.9", "--against", other)
    before = [invoke(*command) for command in reads]
    invoke("clean", out)
    for command, was in zip(reads, before, strict=True):
        now = invoke(*command)
        assert (now.exit_code, now.stdout) == (was.exit_code, was.stdout), command
    assert invoke("run", spec, "--fail-if", "ks>0.9", "--against", other).exit_code == 0
    refused = invoke("run", spec, "--budget", "0.9")
    assert refused.exit_code == 2 and "frozen at budget.fraction 0.3" in refused.stderr
    settings = ("audit.fraction=0.1", "metric=chrf", "input.columns.reference=human")
    refused = invoke("run", spec, *(f"--set={setting}" for setting in settings))
    assert refused.exit_code == 2 and "an audit (audit.fraction) needs them" in refused.stderr
    refused = invoke("plan", spec)
    assert refused.exit_code == 2 and "`clean` removed its scores" in refused.stderr


def test_failed_rows_of_a_cleaned_job_cannot_be_tried_again(invoke, make_spec, fake_engine, out):
    fake_engine.fails = two_rows_fail
    spec = make_spec(run__max_failed_fraction=0.5)
    assert invoke("run", spec).exit_code == 3
    invoke("clean", out)
    before = files(out)
    answer = invoke("run", spec, "--retry-failed")
    assert answer.exit_code == 2
    assert "`clean` removed its work files, and --retry-failed needs them" in answer.stderr
    assert files(out) == before and (out / "_SUCCESS").exists()
    assert invoke("run", spec).exit_code == 3


def test_a_lost_output_of_a_cleaned_job_is_told(invoke, make_spec, out):
    invoke("run", make_spec())
    invoke("clean", out)
    (out / "data/a.parquet").unlink()
    answer = invoke("run", make_spec())
    assert answer.exit_code == 2 and "are now missing or changed. Restore them" in answer.stderr
    assert "data/a.parquet: missing or of another size" in str(invoke("clean", out).exception)


def test_what_is_no_finished_job_is_refused(invoke, make_spec, out, tmp_path):
    answer = invoke("clean", tmp_path)
    assert answer.exit_code != 0 and "no job there" in str(answer.exception)
    assert not (tmp_path / "_job").exists()
    invoke("plan", make_spec())
    before = files(out)
    for options in ([], ["--dry-run"]):
        answer = invoke("clean", out, *options)
        assert "this job is not finished and needs its work files" in str(answer.exception)
    assert files(out) == before


def test_a_held_job_is_refused(invoke, make_spec, out, monkeypatch):
    monkeypatch.setattr("routelmt_batch.store.ledger.SIGN_OF_LIFE_S", 0.5)
    invoke("run", make_spec())
    ledger = Folder.at(str(out)).ledger()
    with ledger.writing():
        ledger.take()
        assert "another run holds this job" in str(invoke("clean", out).exception)
    assert work_files(out)


def test_a_damaged_output_is_told_before_what_it_could_be_made_from_is_gone(invoke, make_spec, out):
    invoke("run", make_spec())
    shard = out / "data/a.parquet"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    assert f"{shard}: changed after it was written" in str(invoke("clean", out).exception)
    assert work_files(out)
    shard.unlink()
    assert invoke("run", make_spec()).exit_code == 0
    assert invoke("clean", out).exit_code == 0 and not work_files(out)


@pytest.mark.parametrize(
    "failpoint", ["cleaned.ledger.before:1", "cleaned.ledger.after:1", "sweep:1", "sweep:4"]
)
@pytest.mark.parametrize("then", ["clean", "run"])
def test_killed_in_the_midst_it_is_finished_by_the_next(invoke, make_spec, out, failpoint, then):
    spec = make_spec()
    invoke("run", spec)
    report = invoke("report", out).stdout

    def child():
        os.environ[failpoints.VARIABLE] = failpoint
        clean(Folder.at(str(out)), Bars.none())
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert work_files(out), "something is left"
    assert invoke("report", out).stdout == report
    assert invoke(then, out if then == "clean" else spec).exit_code == 0
    assert invoke("clean", out).exit_code == 0 and not work_files(out)
    assert last_line(invoke("run", spec))["status"] == "done"


def test_labels_are_cleaned_too(invoke, make_spec, tmp_path):
    from tests.cli.test_cli import label_spec

    spec, out = label_spec(tmp_path), tmp_path / "labels"
    invoke("label", spec)
    before = [invoke("report", out).stdout, invoke("label", spec).stdout]
    data = files(out / "data")
    answer = invoke("clean", out)
    assert answer.exit_code == 0 and "translations" in answer.stdout and "quality" in answer.stdout
    assert not work_files(out) and files(out / "data") == data
    assert [invoke("report", out).stdout, invoke("label", spec).stdout] == before
    shutil.rmtree(out / "data")
    answer = invoke("label", spec)
    assert answer.exit_code == 2 and "Restore them" in answer.stderr
    assert json.loads((out / "reports/job.json").read_text())["labelled"] == 11
