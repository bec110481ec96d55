"""Engines that do not answer, in real processes without vLLM: they are ended, and their rows are tried again."""

import pickle
import signal
import subprocess
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch.engines import stacks
from routelmt_batch.engines.actor import BATCH, EngineActor, Serving
from routelmt_batch.engines.gathering import PartLimits
from routelmt_batch.engines.process import EngineBroken, EngineDied, EngineProcess, Recipe
from routelmt_batch.patience import Patience
from tests.engines.given import keep_results, requests
from tests.engines.hung import ENVIRONMENT, HANGS, Shouting

PATIENCE = Patience(stall_s=0.5, start_s=60)
STATES = {"sleep": "sleeping", "lock": "sleeping", "stop": "stopped"}


def recipe(load: Shouting, patience: Patience = PATIENCE) -> Recipe:
    return Recipe(load, environment=ENVIRONMENT, patience=patience)


@pytest.mark.parametrize("how", HANGS)
def test_an_engine_that_hangs_shows_where_and_is_killed(how, capfd):
    engine = EngineProcess(recipe(Shouting()))
    engine.send([0], requests(source=["fine"]))
    assert [(key, answer.text) for key, answer in engine.receive()] == [(0, "FINE")]
    assert not engine.busy
    engine.send([1], requests(source=[how]))
    began = time.monotonic()
    with pytest.raises(
        EngineDied, match=rf"answered none of its rows for 0.5 s \({STATES[how]}\) and was killed"
    ):
        engine.receive()
    assert time.monotonic() - began < 10
    assert not psutil.pid_exists(engine._process.pid)
    stacks = capfd.readouterr().err
    if how != "stop":  # which takes no signal but SIGKILL
        assert 'hung.py", line' in stacks and "in step" in stacks


def test_an_engine_without_rows_is_not_waited_for():
    engine = EngineProcess(recipe(Shouting()))
    time.sleep(4 * PATIENCE.stall_s)
    engine.send([0], requests(source=["fine"]))
    assert engine.receive()[0][1].text == "FINE"
    engine.end()


def test_more_rows_than_the_pipe_holds_do_not_wait_for_a_stopped_engine():
    """The sender is woken by the death of the process, and its rows are among those without an answer."""
    engine = EngineProcess(recipe(Shouting()))
    psutil.Process(engine._process.pid).suspend()
    began = time.monotonic()
    engine.send([0], requests(source=["long " * 2_000_000]))
    with pytest.raises(EngineDied, match="stopped"):
        engine.receive()
    assert time.monotonic() - began < 10
    engine.start()
    engine.send([1], requests(source=["fine"]))
    assert engine.receive()[0][1].text == "FINE"
    engine.end()


def test_a_start_that_hangs_has_a_limit_of_its_own(capfd):
    with pytest.raises(EngineDied, match=r"was not ready after 2 s \(sleeping\) and was killed"):
        EngineProcess(recipe(Shouting(loading="sleep"), Patience(stall_s=0.1, start_s=2)))
    assert "hung.py" in capfd.readouterr().err


def test_a_killed_engine_takes_its_own_processes_with_it(tmp_path):
    engine = EngineProcess(recipe(Shouting()))
    child = psutil.Process(engine._process.pid)
    kin = [child, *child.children(recursive=True)]
    engine.end()
    assert not any(each.is_running() for each in kin)


def actor(tmp_path, load: Shouting, patience: Patience = PATIENCE) -> EngineActor:
    limits = PartLimits(rows=1024, calls=1)
    return EngineActor(Serving("small", recipe(load, patience), keep_results(tmp_path), limits, 0), None)


@pytest.mark.slow
@pytest.mark.parametrize("how", HANGS)
def test_a_row_that_hangs_its_engine_is_found_and_the_others_are_answered(how, tmp_path):
    serving = actor(tmp_path, Shouting())
    rows = requests(source=["one", "two", how, "four"])
    serving(pa.table({BATCH: pa.array([pickle.dumps(rows)], pa.binary())}))
    (part,) = tmp_path.glob("*.parquet")
    table = pq.read_table(part)
    assert table["text"].to_pylist() == ["ONE", "TWO", None, "FOUR"]
    assert table["error"].to_pylist() == ["", "", "engine_killed", ""]
    serving._engine.end()


@pytest.mark.slow
def test_an_engine_that_never_becomes_ready_ends_its_actor_with_words(tmp_path):
    with pytest.raises(
        EngineBroken, match=r"not ready after 1 s .* at each of 3 starts: .* run.start_timeout"
    ):
        actor(tmp_path, Shouting(loading="sleep"), Patience(stall_s=0.5, start_s=1))


def test_another_process_with_the_number_of_one_that_ended_is_left_alone():
    """Numbers of processes are used again; an engine that died long ago may still be ended."""
    with subprocess.Popen(["sleep", "60"]) as other:
        assert not stacks.show_and_end(other.pid, stacks.began(other.pid) - 1)
        assert other.poll() is None
        assert stacks.show_and_end(other.pid, stacks.began(other.pid))
        assert other.wait() == -signal.SIGKILL
        assert not stacks.end(other.pid, 0.0)
