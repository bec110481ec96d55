"""What an operator reads when an engine fails: its own last words, from the logs beside the job. No Ray runs."""

import re

import pytest

from routelmt_batch.engines.halving import EngineBroken
from routelmt_batch.engines.session import Session
from routelmt_batch.errors import EngineError, OutputError


def told(session: Session, error: Exception) -> str:
    with pytest.raises(EngineError) as caught, session.explaining("small"):
        raise error
    return str(caught.value)


@pytest.fixture
def session(tmp_path):
    (tmp_path / "engine-10.0.0.7-31077.err").write_text(
        ":actor_name:MapWorker(MapBatches(EngineActor))\n"
        "(EngineCore pid=31199) ERROR 11-22 13:02:11 [core.py:880] ValueError: no room for the KV cache\n"
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue\n"
    )
    return Session(tmp_path, address="10.0.0.1:6379")


def test_the_fault_is_the_engines_and_its_log_is_named(session, tmp_path):
    """Also where Ray is gone, and nothing can be copied any more."""
    message = told(session, RuntimeError("ray: a task failed"))
    assert message.startswith("the small engine failed:\n  ValueError: no room for the KV cache\n")
    assert f"Its full log is in {tmp_path}" in message and "EngineDeadError" not in message


def test_where_ray_is_gone_it_does_not_start_again(session, monkeypatch):
    monkeypatch.setattr("ray.init", lambda *arguments, **options: pytest.fail("Ray was started"))
    session.keep_logs()


def test_a_broken_engine_and_a_dead_actor_say_so_first(session):
    broken = told(session, EngineBroken("EngineBroken: the engine died on 4 rows, and on a harmless one"))
    assert re.search(r":\n  EngineBroken: the engine died on 4 .*\n  ValueError: no room", broken)
    dead = told(session, RuntimeError("The actor is dead because its owner has died"))
    assert re.search(r":\n  its process died 3 times, .*\n  ValueError: no room", dead)


def test_our_own_error_goes_on_as_it_is(session):
    with pytest.raises(OutputError, match="the disk is full"), session.explaining("small"):
        try:
            raise OutputError("the disk is full")
        except OutputError as error:
            raise RuntimeError("UserCodeException") from error


def of_ray(cause: str) -> str:
    """Ray Data's text about an exception in a worker."""
    header = "ray::MapWorker(MapBatches(EngineActor)).submit() (pid=4633, ip=10.0.0.7)\n"
    return (
        f'{header}  File "/app/engines/actor.py", line 12, in __call__\n    self._work(rows)\n{cause}\n\n'
        f"The above exception was the direct cause of the following exception:\n\n{header}"
        "ray.exceptions.UserCodeException: UDF failed to process a data block.\n"
        "To change retry attempts, configure `ray.data.DataContext.get_current()` if this is transient."
    )


@pytest.mark.parametrize(
    ("cause", "shown"),
    [
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/models/vocab'",
            "FileNotFoundError: [Errno 2] No such file or directory: '/models/vocab'",
        ),
        ("ValueError: cannot tokenize: Only this.\nThe row", "ValueError"),
        ("pyarrow.lib.ArrowInvalid: Only this.", "ArrowInvalid"),
        (
            "routelmt_batch.engines.process.EngineBroken: it is started 3 times at most",
            "EngineBroken: it is started 3 times at most",
        ),
    ],
)
def test_a_workers_own_exception_is_told_without_corpus_text(tmp_path, cause, shown):
    message = told(Session(tmp_path), RuntimeError(of_ray(cause)))
    assert message.startswith(f"the small engine failed:\n  {shown}\nIts full log")
