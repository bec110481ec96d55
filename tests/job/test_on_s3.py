"""A job from bucket to bucket: the same as on a disk, whatever the store does meanwhile."""

import hashlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from routelmt_batch.errors import OutputError, RoutelmtError
from routelmt_batch.files import bucket
from routelmt_batch.job import flow
from routelmt_batch.job.rebuild import rebuild
from routelmt_batch.job.verify import verify
from routelmt_batch.spec import JobSpec
from routelmt_batch.spec.file import load
from routelmt_batch.stages.job_report import JobReport
from routelmt_batch.store import ledger
from routelmt_batch.store.folder import Folder
from tests import oracle
from tests.conftest import sampled
from tests.fake_engine import FakeEngine
from tests.files.faults import Fault
from tests.files.proxy import faulty
from tests.files.s3 import S3Server, s3_server
from tests.job import elsewhere
from tests.job.elsewhere import BARS, TAKEN_OVER
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def store(server, corpus, tmp_path, monkeypatch) -> S3Server:
    """The server, with the corpus below `<test>/in`."""
    server.put_folder(corpus, f"{tmp_path.name}/in")
    use(server.environ, monkeypatch)
    monkeypatch.setattr(ledger, "LEASE_S", 0.5)
    monkeypatch.setattr(ledger, "_LOOK_S", 0.05)
    return server


@pytest.fixture
def proxy(store, monkeypatch):
    with faulty(store) as running:
        use(running.environ, monkeypatch)
        yield running


def use(environ, monkeypatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    bucket._store.cache_clear()  # clients of another test's server


@pytest.fixture
def uris(server, tmp_path) -> tuple[str, ...]:
    """Settings of a job from bucket to bucket."""
    return (
        f"input.uri={server.uri(f'{tmp_path.name}/in')}",
        f"output.uri={server.uri(f'{tmp_path.name}/out')}",
    )


def run(spec: Path, uris: tuple[str, ...], tmp_path: Path):
    return flow.run(load(spec, uris), flow.Options(), BARS, FakeEngine(tmp_path / "sent.log").opened)


def left(server: S3Server, tmp_path: Path, name: str = "left") -> Path:
    """The output, downloaded."""
    return server.download(f"{tmp_path.name}/out", tmp_path / name)


def tree(output: Path) -> set[str]:
    """Paths of an output, without the parts' own names and the log's."""
    return {
        path.relative_to(output).as_posix()
        for path in output.rglob("*")
        if path.is_file() and path.parent.parent.name != "_job" and path.parent.name != "logs"
    }


def data(output: Path) -> dict[str, str]:
    files = sorted((output / "data").rglob("*.parquet"))
    return {
        path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


@pytest.fixture
def local(make_spec, tmp_path) -> dict[str, str]:
    """The data of the same job on a disk."""
    output = tmp_path / "local"
    flow.run(
        load(make_spec(), output_uri=str(output)), flow.Options(), BARS, FakeEngine(tmp_path / "l.log").opened
    )
    return data(output)


def test_it_is_the_same_as_on_a_disk(make_spec, corpus, store, uris, local, tmp_path):
    assert run(make_spec(), uris, tmp_path).new
    output = left(store, tmp_path)
    oracle.check(output, corpus, "0.3")
    assert data(output) == local and tree(output) == tree(tmp_path / "local")
    before = store.keys(tmp_path.name)
    assert not run(make_spec(), uris, tmp_path).new
    assert store.keys(tmp_path.name) == before, "a finished job is left as it is"


# In each stage: a part, its commit, an output, its commit, and what is written once.
STOPS = [
    "manifest.publish.before:1",
    "scores.publish.after:3",
    "scores.ledger.before:2",
    "plan.publish.after:1",
    "translations.publish.before:2",
    "translations.ledger.after:2",
    "output.publish.before:2",
    "output.publish.after:2",
    "output.ledger.after:2",
    "success.publish.before:1",
    "success.publish.after:1",
]


@pytest.mark.slow
@pytest.mark.parametrize("place", sampled(STOPS, every=2))
def test_killed_it_goes_on(make_spec, corpus, store, uris, local, tmp_path, place):
    spec, log = make_spec(), tmp_path / "killed.log"
    killed = elsewhere.start(spec, log, place, store.environ, uris)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    committed = oracle.digests(left(store, tmp_path, "killed"))
    run(spec, uris, tmp_path)
    output = left(store, tmp_path)
    oracle.check(output, corpus, "0.3")
    assert data(output) == local
    parts = {Path(path).name: digest for path, digest in oracle.digests(output).items()}
    assert {Path(path).name for path in committed} <= parts.keys(), "committed parts stay"
    for stage in ("scores", "translations"):
        assert set((output / "_job" / stage).iterdir()) == set(oracle.committed(output, stage))


# After _SUCCESS is there, the job is finished, and nobody takes it over.
@pytest.mark.slow
@pytest.mark.parametrize("place", sampled(STOPS[:-1], every=2, first=1))
def test_stopped_and_replaced_it_changes_nothing(make_spec, corpus, store, uris, tmp_path, place):
    spec, log = make_spec(), tmp_path / "late.log"
    late = elsewhere.start(spec, log, f"{place}:stop", store.environ, uris)
    wait_for(lambda: psutil.Process(late.pid).status() == psutil.STATUS_STOPPED, place, 60)
    try:
        run(spec, uris, tmp_path)
        output = left(store, tmp_path)
        oracle.check(output, corpus, "0.3")
    finally:
        os.kill(late.pid, signal.SIGCONT)
    late.join(60)
    assert late.exitcode == TAKEN_OVER, elsewhere.said(log)
    assert f"was taken over by process {os.getpid()} on" in elsewhere.said(log)
    after = left(store, tmp_path, "after")
    names = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    assert all((after / name).read_bytes() == (output / name).read_bytes() for name in names)
    new = {path.relative_to(after) for path in after.rglob("*") if path.is_file()} - names
    assert not {name for name in new if name.parts[:2] != ("_job", place.split(".")[0])}, "unnamed parts only"


@pytest.mark.slow
@pytest.mark.parametrize("file", ["spec", "manifest", "plan"])
def test_a_late_run_with_other_settings_replaces_nothing(make_spec, corpus, store, uris, tmp_path, file):
    """It was stopped when it had checked that it may replace the file. The next run, with the settings that the
    job began with, finds that file right, and an object with equal contents has an equal ETag."""
    spec, log = make_spec(), tmp_path / "late.log"
    engine = FakeEngine(tmp_path / "first.log")
    with engine.stopping(lambda label, row: label in ("small", "large")):
        flow.run(load(spec, uris), flow.Options(), BARS, engine.opened)
    place = f"{file}.replace.before:1"
    late = elsewhere.start(spec, log, f"{place}:stop", store.environ, [*uris, "budget.fraction=0.5"])
    wait_for(lambda: psutil.Process(late.pid).status() == psutil.STATUS_STOPPED, place, 60)
    try:
        run(spec, uris, tmp_path)
        output = left(store, tmp_path)
        oracle.check(output, corpus, "0.3")
    finally:
        os.kill(late.pid, signal.SIGCONT)
    late.join(60)
    assert late.exitcode == TAKEN_OVER, elsewhere.said(log)
    path = {"spec": "_job/spec.yaml", "manifest": "_job/manifest.json", "plan": "_job/plan/plan.json"}[file]
    assert (left(store, tmp_path, "after") / path).read_bytes() == (output / path).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("on", ["s3", "disk"])
def test_of_two_at_once_one_works_and_the_other_says_who(make_spec, corpus, store, uris, tmp_path, on):
    spec, settings = make_spec(), uris if on == "s3" else ()
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    both = [elsewhere.start(spec, log, "", store.environ, settings, slow=True) for log in logs]
    for process in both:
        process.join(120)
    assert sorted(process.exitcode for process in both) == [0, OutputError.exit_code]
    winner, loser = sorted(range(2), key=lambda index: both[index].exitcode)
    assert f"process {both[winner].pid} on" in elsewhere.said(logs[loser])
    assert not logs[loser].exists(), "it sent no row"
    oracle.check(left(store, tmp_path) if on == "s3" else tmp_path / "out", corpus, "0.3")


KEYS = {"log": r"/log/", "parts": r"/(scores|translations)/", "data": r"/data/", "input": r"/in/"}
FAULTS = [
    Fault("slow_down", "put", times=4),
    Fault("slow_down", "get", times=4),
    Fault("error_500", "head", times=2),
    Fault("error_500", "list", times=2),
    *(
        Fault(kind, key=KEYS[key], times=2, after=1, reset=reset)
        for kind, key, reset in (
            ("cut_upload", "log", False),
            ("cut_upload", "parts", True),
            ("cut_upload", "data", False),
            ("cut_after", "log", True),
            ("cut_after", "parts", False),
            ("cut_after", "data", True),
        )
    ),
    *(Fault("cut_download", key=KEYS[key], times=2) for key in ("log", "parts", "input")),
    Fault("cut_after", "get", times=3, reset=True),
    Fault("slow", times=20, seconds=0.1),
    Fault("hide_in_listing", key=r"/_job/"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.method}-{fault.key}-{fault.reset}"
)
def test_a_fault_of_the_store_changes_nothing(make_spec, corpus, proxy, store, uris, local, tmp_path, fault):
    proxy.add(fault)
    run(make_spec(), uris, tmp_path)
    assert proxy.met[fault.kind] or fault.kind == "hide_in_listing", "it happened"
    output = left(store, tmp_path)
    oracle.check(output, corpus, "0.3")
    assert data(output) == local


def test_parts_that_no_listing_shows_are_read(make_spec, corpus, proxy, store, uris, tmp_path):
    """A job that goes on reads what its log names, though listings are behind."""
    spec, log = make_spec(), tmp_path / "killed.log"
    killed = elsewhere.start(spec, log, "translations.ledger.after:2", store.environ, uris)
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    proxy.add(Fault("hide_in_listing", key=r"/_job/"))
    run(spec, uris, tmp_path)
    sent = set(log.read_text().splitlines())
    again = (tmp_path / "sent.log").read_text().splitlines()
    assert not {row for row in again if row.startswith("router")} & sent
    oracle.check(left(store, tmp_path), corpus, "0.3")


def test_a_store_without_conditions_is_refused(make_spec, proxy, uris, store, tmp_path):
    proxy.add(Fault("ignore_conditions"))
    with pytest.raises(OutputError, match="this store overwrites objects although it was asked not to"):
        run(make_spec(), uris, tmp_path)
    assert not store.keys(f"{tmp_path.name}/out")


def test_a_store_that_stays_away_ends_the_job_with_words(
    make_spec, proxy, uris, tmp_path, monkeypatch, corpus, store
):
    monkeypatch.setattr(bucket, "_RETRY_S", 1.0)
    bucket._store.cache_clear()
    proxy.add(Fault("slow_down", "put", key=KEYS["parts"]))
    with pytest.raises(RoutelmtError, match=r"(?s)s3://corpus/.*SlowDown.*run the same command again"):
        run(make_spec(), uris, tmp_path)
    proxy.clear()
    run(make_spec(), uris, tmp_path)
    oracle.check(left(store, tmp_path), corpus, "0.3")


def test_a_shard_that_is_replaced_while_it_is_read_is_named(make_spec, store, uris, tmp_path, corpus):
    spec = load(make_spec(), uris)
    engine = FakeEngine(tmp_path / "sent.log")
    with engine.stopping(lambda label, row: label == "small"):
        flow.run(spec, flow.Options(), BARS, engine.opened)
    store.put(f"{tmp_path.name}/in/a.parquet", (corpus / "sub/d.parquet").read_bytes())
    with pytest.raises(RoutelmtError, match=r"a\.parquet: changed"):
        flow.run(spec, flow.Options(), BARS, engine.opened)


def test_damaged_objects_are_told_and_mended(make_spec, corpus, store, uris, local, tmp_path):
    run(make_spec(), uris, tmp_path)
    out, kinds = f"{tmp_path.name}/out", {JobSpec: JobReport}
    assert not verify(Folder.at(store.uri(out)), kinds, BARS).damaged
    store.put(f"{out}/_SUCCESS", b"")
    store.put(f"{out}/data/a.parquet", b"PAR1")
    found = verify(Folder.at(store.uri(out)), kinds, BARS)
    damaged = {str(finding.where): finding.remedy for finding in found.findings if finding.damage}
    assert damaged == {store.uri(f"{out}/{name}"): "rebuild" for name in ("_SUCCESS", "data/a.parquet")}
    assert len(rebuild(found, BARS)) == 2
    assert run(make_spec(), uris, tmp_path).new
    assert not verify(Folder.at(store.uri(out)), kinds, BARS).damaged
    output = left(store, tmp_path)
    oracle.check(output, corpus, "0.3")
    assert data(output) == local


def test_the_next_night_takes_what_an_output_and_a_memory_in_the_store_have(
    make_spec, store, server, uris, tmp_path
):
    """Each night from bucket to bucket, with folded rows; the second reuses, the third remembers."""
    memory = f"translation_memory={server.uri(f'{tmp_path.name}/memory')}"
    spec = make_spec(input__fold="exact")
    first = run(spec, (*uris, memory), tmp_path).report
    assert (first.folded_rows, first.calls["score"]) == (1, 64)
    for name, given in (("second", f"reuse=[{uris[1].partition('=')[2]}]"), ("third", memory)):
        output = f"output.uri={server.uri(f'{tmp_path.name}/{name}')}"
        (tmp_path / "sent.log").unlink(missing_ok=True)
        again = run(spec, (uris[0], output, given), tmp_path).report
        assert not (tmp_path / "sent.log").exists(), "no engine ran"
        assert again.reused_rows["score"] == first.calls["score"]
        assert again.status == first.status
