"""A Ray head of the tests' own, with a token, and commands that speak to it over HTTP."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from tests.waiting import free_ports

READY_S = 60


@dataclass(frozen=True)
class Head:
    """`environment` is its operator's: the URL and the token are set."""

    url: str
    environment: dict[str, str]

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        """`routelmt-batch` with some arguments; an empty variable is one that is not set."""
        wanted = {name: value for name, value in {**self.environment, **environment}.items() if value}
        return subprocess.Popen(
            [sys.executable, "-m", "routelmt_batch", *map(str, arguments)],
            env=wanted,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def do(self, *arguments: object, **environment: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        return ended(self.start(*arguments, **environment))


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, errors = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert "Traceback" not in errors, errors
    return process.returncode, out, errors


@contextlib.contextmanager
def running_head() -> Iterator[Head]:
    """Start a head with four CPUs; afterwards every process that came of it is gone."""
    with tempfile.TemporaryDirectory(prefix="head-", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(16))
        port, dashboard, client, agent = free_ports(4)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {
            "HOME": folder,  # no token of whoever runs the tests
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--num-cpus=4", f"--object-store-memory={200 << 20}", f"--temp-dir={folder}/ray"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--port={port}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
            *("--min-worker-port=0", "--max-worker-port=0"),
        ]
        with open(f"{folder}/head.log", "w") as log:
            process = subprocess.Popen(
                command,
                env=environment | {"RAY_AUTH_MODE": "token", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,
            )
        url = f"http://127.0.0.1:{dashboard}"
        try:
            _wait_until_ready(url, token.read_text(), process, Path(log.name))
            yield Head(url, environment | {"RAY_API_SERVER_ADDRESS": url})
        finally:
            _stop(process)


def _wait_until_ready(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.ConnectionError):
            answer = requests.get(
                f"{url}/api/version", headers={"Authorization": f"Bearer {token}"}, timeout=5
            )
            if answer.ok:
                return
        time.sleep(0.2)
    raise AssertionError(f"no head within {READY_S} s:\n{log.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the head in order, then its process group; fail if anything of its family outlives both."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    assert not left, f"outlived the head: {left}"
