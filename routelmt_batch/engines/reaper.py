"""A small process beside a local Ray: when the job is gone, so are the processes it started.

A job killed with SIGKILL cannot clean up, and some of Ray's processes would live on for a minute. The
reaper takes note of the job's descendants while it runs. When its standard input closes, the job has
ended, one way or another: it gives them a few seconds and kills what is left.

Run as a script: `python reaper.py PID MARK`, MARK a variable that the job set for its children.
"""

from __future__ import annotations

import select
import subprocess
import sys
import time
import uuid
from collections.abc import MutableMapping

import psutil

MARK = "ROUTELMT_JOB"
_POLL_S = 1.0
_GRACE_S = 5.0


class Reaper:
    """The job's side: start it before Ray, end it after."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        mark = environment[MARK] = uuid.uuid4().hex  # fresh: a parent may be a job, too
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(psutil.Process().pid), mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C goes to the terminal's whole process group; the reaper has to outlast it.
            start_new_session=True,
        )

    def look(self) -> None:
        """Have it note every process of the moment, before they lose their parents."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def finish(self) -> None:
        """Have it reap, and wait until all are gone."""
        self._process.communicate()


def main(job: int, mark: str) -> None:
    """Watch process `job` until standard input closes, then reap its descendants."""
    family: set[psutil.Process] = set()
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], _POLL_S)
        family |= _descendants(job)
        if ready:
            if not sys.stdin.readline():
                break
            print(flush=True)
    deadline = time.monotonic() + _GRACE_S
    while (left := [process for process in family if _is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in [*left, *_marked(mark)]:
        try:
            process.kill()
        except psutil.Error:
            continue


def _descendants(job: int) -> set[psutil.Process]:
    try:
        found = psutil.Process(job).children(recursive=True)
    except psutil.Error:
        return set()
    return {process for process in found if process.pid != psutil.Process().pid}


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _marked(mark: str) -> list[psutil.Process]:
    """Processes too young to have been noted. (Older ones may have overwritten their environment
    with a process title.)"""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != psutil.Process().pid:
                found.append(process)
        except psutil.Error:
            continue
    return found


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
