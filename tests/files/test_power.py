"""Power cuts: what was said to be durable is."""

import pytest

from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.location import Stat
from routelmt_batch.files.write import write_text
from routelmt_batch.job import flow
from routelmt_batch.spec.file import load
from routelmt_batch.store.log import Log
from tests import oracle
from tests.fake_engine import FakeEngine
from tests.files.power import recorded
from tests.job.test_resume import BARS, committed_rows

pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def log_after_a_cut(root, tmp_path, monkeypatch, ignored=lambda path: False) -> list[int]:
    with recorded(root, monkeypatch) as disk:
        disk.ignored = ignored
        log = Log(DiskLocation(root / "a/new/out/_job/log"))
        log.take()
        for n in range(3):
            log.add([{"n": n}])
        left = disk.after_a_cut(tmp_path / "left")
    return [record["n"] for record in Log(DiskLocation(left / "a/new/out/_job/log")).read() if "n" in record]


def test_what_was_added_to_a_log_outlives_a_power_cut(root, tmp_path, monkeypatch):
    assert log_after_a_cut(root, tmp_path, monkeypatch) == [0, 1, 2]


@pytest.mark.parametrize("left_out", ["file", "log", "_job", "a", "root"])
def test_without_any_one_fsync_it_would_not(root, tmp_path, monkeypatch, left_out):
    def ignored(path):
        if left_out == "file":
            return path.is_file()
        return path == root if left_out == "root" else path.is_dir() and path.name == left_out

    try:
        assert log_after_a_cut(root, tmp_path, monkeypatch, ignored) != [0, 1, 2]
    except Exception as damaged:
        assert "damaged" in str(damaged)


def test_a_replaced_file_is_the_old_one_or_the_new_one(root, tmp_path, monkeypatch):
    path = root / "report.json"
    with recorded(root, monkeypatch) as disk:
        write_text(path, "old", "report")
        found = []
        disk.on_sync = lambda: found.append(
            (disk.after_a_cut(tmp_path / f"left{disk.syncs}") / "report.json").read_text()
        )
        write_text(path, "new", "report")
    assert found[0] == "old" and found[-1] == "new" and set(found) == {"old", "new"}


def test_a_removed_file_stays_removed(root, tmp_path, monkeypatch):
    location = DiskLocation(root / "_SUCCESS")
    with recorded(root, monkeypatch) as disk:
        location.create(b"done")
        location.remove(only=location.stat())
        assert not (disk.after_a_cut(tmp_path / "left") / "_SUCCESS").exists()
    assert location.stat() is None and isinstance(location.parent.stat(), Stat | None)


@pytest.mark.parametrize("cut", [5, 20, 33, 46, 60, 75, 90])
def test_a_job_goes_on_after_a_power_cut(make_spec, corpus, root, tmp_path, monkeypatch, cut):
    """At some fsync of a job its disk loses all that is not durable. Committed rows are there."""
    log = tmp_path / "sent.log"
    left = tmp_path / "left"
    left.mkdir()
    with recorded(root, monkeypatch) as disk:

        def look() -> None:
            if disk.syncs == cut:
                disk.after_a_cut(left)

        disk.on_sync = look
        flow.run(
            load(make_spec(), output_uri=str(root / "out")), flow.Options(), BARS, FakeEngine(log).opened
        )
        assert disk.syncs > cut
    committed = committed_rows(left / "out")
    log.unlink()
    outcome = flow.run(
        load(make_spec(), output_uri=str(left / "out")), flow.Options(), BARS, FakeEngine(log).opened
    )
    assert outcome.report.rows == 71
    assert not set(log.read_text().splitlines() if log.exists() else ()) & committed
    oracle.check(left / "out", corpus, "0.3")
