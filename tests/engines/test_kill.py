"""A real run, killed and stopped: nothing is lost, nothing is left alive."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from routelmt_batch import failpoints
from routelmt_batch.engines import reaper
from tests import oracle
from tests.files.s3 import S3Server, s3_server
from tests.waiting import rest, wait_for

pytestmark = pytest.mark.engine
CHILD = "routelmt_batch.engines.child"  # an engine's process, by its command


class Command:
    """`routelmt-batch run`, and every process that came of it."""

    def __init__(self, spec: Path, failpoint: str = "", *options: str, **variables: str) -> None:
        environment = {**os.environ, failpoints.VARIABLE: failpoint, **variables}
        # A job of its own, not one of the tests' Ray session.
        for name in ("RAY_ADDRESS", reaper.MARK):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "routelmt_batch", "run", str(spec), *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.family: set[psutil.Process] = set()
        self.seen: set[str] = set()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        # Ray and vLLM rename their processes, which hides their environment: note them as they come.
        with contextlib.suppress(psutil.Error):
            while True:
                began = time.monotonic()
                self.family |= set(psutil.Process(self.process.pid).children(recursive=True))
                self.seen |= set(self.names())
                rest(began)

    def finish(self, within_s: float = 300) -> tuple[int, str]:
        self.told, errors = self.process.communicate(timeout=within_s)
        return self.process.returncode, errors

    def names(self) -> list[str]:
        found = []
        for process in list(self.family):
            with contextlib.suppress(psutil.Error):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()) or process.name())
        return found

    def survivors(self, within_s: float) -> list[str]:
        deadline = time.monotonic() + within_s
        while (left := self.names()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


@pytest.fixture
def server(tmp_path) -> Iterator[S3Server]:
    with s3_server(tmp_path / "s3") as running:
        yield running


def parts(output: Path) -> dict[str, str]:
    """Hashes of committed parts by name."""
    return {Path(path).name: digest for path, digest in oracle.digests(output).items()}


def test_kill_9_while_scoring_and_while_translating(make_spec, corpus, tmp_path, server):
    """From bucket to bucket: what Ray's tasks wrote to the store is found again."""
    server.put_folder(corpus, "in")
    # All to the large model: one engine less to start each time.
    spec = make_spec(input__uri=server.uri("in"), output__uri=server.uri("out"), budget__fraction=1)
    standing: dict[str, str] = {}
    for failpoint in ("scores.ledger.after:3", "translations.ledger.after:2"):
        command = Command(spec, failpoint, **server.environ)
        code, _ = command.finish()
        assert code == -signal.SIGKILL
        assert any(CHILD in name for name in command.seen), "an engine was running"
        assert command.survivors(within_s=15) == [], "nothing outlives the job"
        now = parts(server.download("out", tmp_path / failpoint))
        assert {part: now[part] for part in standing} == standing
        assert len(now) > len(standing)
        standing = now
    command = Command(spec, "", "--log-format", "json", **server.environ)
    code, errors = command.finish()
    assert code == 0, errors
    output = server.download("out", tmp_path / "left")
    assert (output / "reports/index.html").exists() and list((output / "_job/logs").glob("engine-*"))
    (last,) = command.told.splitlines()
    assert json.loads(last)["status"] == "done", "all of standard output, whatever engines print"
    assert {json.loads(line)["level"] for line in errors.splitlines()} == {"info"}
    assert {part: parts(output)[part] for part in standing} == standing
    rows = oracle.check(output, corpus, "1")
    lines = oracle.log(output)
    translated = sum(
        span[0] for line in lines if line.get("stage") == "translations" for span in line["spans"].values()
    )
    assert translated == sum(row["status"] != "skipped" for row in rows.values()), "none was sent twice"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_stops_cleanly_and_says_how_to_go_on(make_spec, number, code):
    command = Command(make_spec())
    # In the middle of the engine's start: the actor is there, its engine process not yet.
    wait_for(lambda: any("EngineActor" in name for name in command.names()), "actor", within_s=120)
    command.process.send_signal(number)
    returned, errors = command.finish()
    assert returned == code, errors
    assert "Run the same command again to continue" in errors
    assert "Traceback" not in errors
    assert command.survivors(within_s=5) == []
