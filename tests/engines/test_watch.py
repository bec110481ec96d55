"""Passes in which nothing moves: a stuck actor is ended and its rows are redone; else the job ends with words."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch.engines import watch
from routelmt_batch.engines.lanes import Lane, Mask, Pending
from routelmt_batch.engines.pools import Pools
from routelmt_batch.engines.session import Session
from routelmt_batch.engines.watch import Watch, Watched
from routelmt_batch.patience import Patience
from routelmt_batch.routers.scorers import Random
from routelmt_batch.rows import SCORES
from routelmt_batch.spec import Pool
from tests.engines.given import ALL, Given, keep_results, requests
from tests.engines.test_kill import Command
from tests.waiting import wait_for

STALL_S = 4.0


def lane(folder: Path, pending: Pending = ALL, write: Callable[[pa.Table], int] | None = None) -> Lane:
    texts = [f"row {row}" for row in range(40)]
    return Lane(
        "score",
        Pool(source=""),
        [Given(requests(source=texts))],
        pending,
        write or keep_results(folder),
        40,
        stage=SCORES,
        patience=Patience(STALL_S, 120),
        scorer=Random(1),
    )


@dataclass(frozen=True)
class HangsOnce:
    """A disk that hangs: the first part is never written."""

    folder: Path

    def __call__(self, results: pa.Table) -> int:
        try:
            (self.folder / "hung").mkdir()
        except FileExistsError:
            return keep_results(self.folder)(results)
        time.sleep(600)
        return 0


@dataclass(frozen=True)
class HangsUntil:
    """Rows that cannot be read until a file is there."""

    path: Path

    def __call__(self, work: Given, wanted: Mask) -> Iterator[pa.Table]:
        while not self.path.exists():
            time.sleep(0.1)
        yield work.requests


@pytest.mark.engine
def test_an_actor_that_hangs_is_ended_and_its_rows_are_redone(ray_session, tmp_path):
    heard: list[tuple[str, str]] = []
    with Session(tmp_path / "logs", verbose=True) as session:
        work = lane(tmp_path, write=HangsOnce(tmp_path))
        receipts = list(Pools(session).run([work], lambda message, level: heard.append((message, level))))
    assert sum(receipt.part for receipt in receipts) == 40
    (part,) = tmp_path.glob("*.parquet")
    assert sorted(pq.read_table(part)["row"].to_pylist()) == list(range(40))
    (told,) = [message for message, level in heard if level == "warning"]
    assert "gave no sign of life for 4 s and was ended: its rows are processed again" in told


@pytest.mark.engine
def test_a_pass_in_which_nothing_moves_ends_the_job_with_words_and_stacks(ray_session, tmp_path, capfd):
    ended: list[Exception] = []

    def end(error: Exception) -> None:
        ended.append(error)
        (tmp_path / "go").touch()

    (tmp_path / "logs").mkdir()
    with Session(tmp_path / "logs", verbose=True, end=end) as session:
        work = lane(tmp_path, Pending(ALL.wanted, HangsUntil(tmp_path / "go")))
        assert sum(receipt.part for receipt in Pools(session).run([work])) == 40
    (error,) = ended
    assert "no row was committed for 4 s (run.stall_timeout), and none of 1 engines has rows" in str(error)
    assert f"stacks of the driver and of the engines are in {tmp_path / 'logs'}" in str(error)
    assert "committed work is kept" in str(error)
    assert "most recent call first" in capfd.readouterr().err, "the driver's stacks"
    logs = "".join(path.read_text() for path in (tmp_path / "logs").glob("engine-*.err"))
    assert "most recent call first" in logs and "in report" in logs, "the actor's stacks"


def test_a_head_that_does_not_answer_is_given_up(monkeypatch, capfd):
    never = threading.Event()
    monkeypatch.setattr(watch, "_alive", never.wait)
    monkeypatch.setattr(watch, "_KILL_S", 0.1)
    ended: list[tuple[Exception, bool]] = []
    watched = Watched(list, lambda error, ray_answers: ended.append((error, ray_answers)))
    with Watch(watched, print, None, Patience(0.5, 60)).watching():
        wait_for(lambda: ended, "end", within_s=10)
    never.set()
    ((error, ray_answers),) = ended
    assert str(error).startswith("Ray's head has not answered for 0.5 s (run.stall_timeout)")
    assert not ray_answers


@pytest.mark.engine
def test_a_job_whose_head_is_stopped_ends_with_words_and_leaves_no_process(make_spec, tmp_path):
    spec = make_spec(run__stall_timeout="15s", router={"kind": "length", "max_model_len_tokens": 256})
    command = Command(spec)
    wait_for(lambda: any("EngineActor" in name for name in command.names()), "actor of an engine")
    for process in list(command.family):
        if "gcs_server" in " ".join(process.cmdline()):
            process.send_signal(signal.SIGSTOP)
    code, errors = command.finish()
    assert code == 1, errors
    assert "error: Ray's head has not answered for 15 s (run.stall_timeout)" in errors
    assert "Traceback" not in errors
    last = json.loads(command.told.splitlines()[-1])
    assert last["status"] == "failed" and last["error"] == "EngineError"
    assert "most recent call first" in (tmp_path / "out/_job/logs/driver.log").read_text()
    assert command.survivors(within_s=15) == []
