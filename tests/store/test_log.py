"""The commit log: what two writers, a crash and damage do to it. Its files are read with json and hashlib alone."""

import json
import multiprocessing
import os
import signal
import socket
from pathlib import Path

import pytest

from routelmt_batch.errors import OutputError, WorkChanged
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.location import Location
from routelmt_batch.store import log as logs
from routelmt_batch.store.log import Log, TakenOver, Writer
from tests import oracle


@pytest.fixture
def folder(tmp_path) -> Location:
    return DiskLocation(tmp_path / "out/_job/log")


def opened(folder: Location) -> tuple[Log, list[dict]]:
    log = Log(folder)
    return log, list(log.read())


def writing(folder: Location) -> Log:
    log, _ = opened(folder)
    log.take()
    return log


def numbers(records: list[dict]) -> list[int]:
    return [record["n"] for record in records if "n" in record]


def test_what_is_added_is_read_in_order_by_all(folder, tmp_path):
    log = writing(folder)
    reader, _ = opened(folder)
    log.add([{"n": 1}, {"n": 2, "text": "a\u2028b\r\nü"}])
    log.add([{"n": 3}])
    assert numbers(list(reader.read())) == [1, 2, 3] and list(reader.read()) == []
    assert numbers(opened(folder)[1]) == [1, 2, 3]
    assert numbers(oracle.log(tmp_path / "out")) == [1, 2, 3]
    (record,) = [record for record in opened(folder)[1] if record.get("n") == 2]
    assert record["text"] == "a\u2028b\r\nü"


def test_a_late_writer_whose_draft_was_swept_says_that_it_was_replaced(folder, monkeypatch):
    """The run that takes a job over removes what the one before has drafted."""
    late, publish = writing(folder), DiskLocation.publish

    def slow(location, draft, over):
        monkeypatch.setattr(DiskLocation, "publish", publish)
        writing(folder)
        draft.unlink()
        return publish(location, draft, over)

    monkeypatch.setattr(DiskLocation, "publish", slow)
    with pytest.raises(TakenOver, match="was taken over by"):
        late.add([{"n": 1}])
    assert numbers(opened(folder)[1]) == []


def test_a_writer_that_was_replaced_adds_nothing_any_more(folder, tmp_path):
    late = writing(folder)
    late.add([{"n": 1}])
    newer = writing(folder)
    assert newer.epoch == 2
    newer.add([{"n": 2}])
    with pytest.raises(TakenOver, match=rf"out: this job was taken over by process {os.getpid()} on"):
        late.add([{"n": 99}])
    assert late.epoch == 0, "it is no writer now"
    assert numbers(oracle.log(tmp_path / "out")) == [1, 2]
    newer.add([{"n": 3}])
    records = oracle.log(tmp_path / "out")
    assert [record for record in records if record.get("event") == "epoch"] == [
        {"event": "epoch", "epoch": 1, "after": -1},
        {"event": "epoch", "epoch": 2, "after": 1},
    ]


def test_a_writer_whose_draft_was_swept_says_who_took_the_log(folder, monkeypatch):
    """It is stopped when its draft is durable, and comes back when another run has swept the folder."""
    late = writing(folder)
    usual = os.link

    def link(draft, path):
        monkeypatch.setattr(os, "link", usual)
        writing(folder)
        Path(draft).unlink()
        usual(draft, path)

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(TakenOver, match=rf"out: this job was taken over by process {os.getpid()} on"):
        late.add([{"n": 99}])
    assert numbers(opened(folder)[1]) == []


def test_a_writer_finds_out_before_it_writes_anything_else(folder):
    late = writing(folder)
    late.check()
    writing(folder)
    with pytest.raises(TakenOver):
        late.check()


def test_of_two_that_start_together_one_has_it(folder):
    first, second = opened(folder)[0], opened(folder)[0]
    first.take()
    with pytest.raises(OutputError, match="another run began this job a moment ago"):
        second.take()
    first.add([{"n": 1}])


def test_many_processes_take_one_log_and_each_commit_is_whole(folder, tmp_path):
    """Whoever loses stops. What is in the log is some writers' commits, each whole and in its order."""

    def compete(name: int) -> None:
        for attempt in range(6):
            try:
                log, _ = opened(folder)
                log.take()
                for n in range(5):
                    log.add([{"by": (name, attempt), "n": n}, {"by": (name, attempt), "n": n}])
            except (OutputError, TakenOver):
                continue
        os._exit(0)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=compete, args=(name,)) for name in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    commits: dict[tuple, list[int]] = {}
    for record in oracle.log(tmp_path / "out"):
        if "by" in record:
            commits.setdefault(tuple(record["by"]), []).append(record["n"])
    assert commits
    for ns in commits.values():
        assert ns == [n for n in range(len(ns) // 2) for _ in "ab"], "a beginning of its commits, each twice"


def test_what_a_signal_interrupted_after_it_was_written_is_not_added_twice(folder, tmp_path):
    log = writing(folder)
    before = log.last
    log.add([{"n": 1}, {"n": 2}])
    log.last = before  # the signal came before this line
    log.add([{"n": 1}, {"n": 2}, {"n": 3}])
    assert numbers(oracle.log(tmp_path / "out")) == [1, 2, 3] == numbers(opened(folder)[1])


def test_a_writer_that_could_not_take_the_log_is_none(folder, monkeypatch):
    log, _ = opened(folder)
    with monkeypatch.context() as patch:
        patch.setattr(DiskLocation, "create", lambda self, data: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            log.take()
    assert log.epoch == 0 and opened(folder)[0].last is None


@pytest.mark.parametrize("count", [63, 64, 65, 200])
def test_a_compacted_log_reads_the_same_with_fewer_files(folder, tmp_path, count, monkeypatch):
    log = writing(folder)
    for n in range(count - 1):
        log.add([{"n": n}, {"event": "alive"}])
    wanted = list(range(count - 1))
    assert numbers(oracle.log(tmp_path / "out")) == wanted
    read = []
    usual = DiskLocation.read_bytes
    monkeypatch.setattr(DiskLocation, "read_bytes", lambda self: read.append(self.name) or usual(self))
    reader, records = opened(folder)
    assert numbers(records) == wanted and reader.next == count
    segments = [name for name in read if "-" not in name]
    assert len(segments) <= count % 64 + 1 + (count < 64)
    assert len(list((tmp_path / "out/_job/log").glob("*-*"))) == count // 64


def test_two_levels_of_compaction(folder, monkeypatch):
    monkeypatch.setattr(logs, "_TOGETHER", 3)
    log = writing(folder)
    for n in range(1, 30):
        log.add([{"n": n}])
        if n == 16:  # a writer that was killed before it compacted
            (folder / "0000000012-0000000014.jsonl").remove()
    names = {name for name in folder.names() if "-" in name}
    assert "0000000000-0000000008.jsonl" in names and "0000000009-0000000017.jsonl" in names
    reader, records = opened(folder)
    assert numbers(records) == list(range(1, 30))
    reader.take()
    reader.add([{"n": 30}])
    assert numbers(opened(folder)[1]) == list(range(1, 31))


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(
            {
                "empty": b"",
                "cut": data[: len(data) // 2],
                "a letter": data.replace(b'"n": 2', b'"n": 7'),
                "another log's": data.replace(b'"n": 2', b'"n": 2 '),
                "no json": b"\xff" * 100,
            }[how]
        )


@pytest.mark.parametrize("how", ["empty", "cut", "a letter", "another log's", "no json", "removed"])
def test_a_damaged_segment_is_named(folder, tmp_path, how):
    log = writing(folder)
    for n in range(1, 5):
        log.add([{"n": n}])
    damage(tmp_path / "out/_job/log/0000000002.jsonl", how)
    with pytest.raises(WorkChanged, match=r"log/0000000002\.jsonl: this segment .* Restore the file"):
        reader, _ = opened(folder)
        reader.check_complete()


@pytest.mark.parametrize("how", ["empty", "cut", "no json"])
def test_a_damaged_compacted_segment_is_passed_over_if_its_segments_are_there(folder, tmp_path, how):
    log = writing(folder)
    for n in range(1, 70):
        log.add([{"n": n}])
    damage(tmp_path / "out/_job/log/0000000000-0000000063.jsonl", how)
    assert numbers(opened(folder)[1]) == list(range(1, 70))
    damage(tmp_path / "out/_job/log/0000000000.jsonl", "removed")
    with pytest.raises(WorkChanged, match=r"log/0000000000-0000000063\.jsonl: this segment"):
        opened(folder)


def test_a_segment_of_another_log_does_not_follow(folder, tmp_path):
    log = writing(folder)
    other = writing(DiskLocation(tmp_path / "other/_job/log"))
    for n in range(1, 4):
        log.add([{"n": n}])
        other.add([{"n": -n}])
    (tmp_path / "other/_job/log/0000000002.jsonl").rename(tmp_path / "out/_job/log/0000000002.jsonl")
    with pytest.raises(WorkChanged, match="does not follow from the one before"):
        opened(folder)


def test_who_holds_a_log(folder):
    log = writing(folder)
    assert opened(folder)[0].writer == Writer.this() == opened(folder)[0].holder
    log.release()
    assert opened(folder)[0].writer is None
    log = writing(folder)
    log.close()
    assert opened(folder)[0].writer is None, "this process writes it no more"


def test_a_process_that_has_ended_holds_nothing(folder):
    def take() -> None:
        writing(folder).add([{"n": 1}])
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=take)
    process.start()
    process.join()
    assert opened(folder)[0].writer is None


def test_a_process_of_another_host_may_still_write(folder, tmp_path):
    writing(folder).close()
    path = tmp_path / "out/_job/log/0000000000.jsonl"
    elsewhere = rewritten(
        path, lambda header: header["writer"].update(host="elsewhere", pid=1, space="another")
    )
    log, _ = opened(folder)
    assert log.writer is not None and log.writer.host == "elsewhere" != socket.gethostname()
    assert log.holder is not None, "its sign of life is new"
    rewritten(path, lambda header: header.update(at="2020-01-01T00:00:00.000+00:00"))
    log, _ = opened(folder)
    assert log.writer is not None and log.holder is None
    assert elsewhere


def rewritten(path: Path, change) -> bytes:
    """Change a segment's header, with a new checksum."""
    import hashlib

    header, *rest, _ = path.read_text().splitlines(keepends=True)
    value = json.loads(header)
    change(value)
    body = "".join([json.dumps(value) + "\n", *rest])
    path.write_text(body + json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest()}) + "\n")
    return path.read_bytes()
