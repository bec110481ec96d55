"""A small process beside a local Ray that ends the job's processes when the job has ended.

A job killed with SIGKILL cannot clean up, and some of Ray's processes would go on for a minute. The
reaper records the job's descendants while the job runs. When its standard input closes, the job has
ended: it gives them a few seconds, and kills those that are still alive.

Run as a script: `python reaper.py PID MARK`. The job sets the variable ROUTELMT_JOB to MARK for its children.
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
    """The job's handle on the reaper: start it before Ray, finish it after Ray."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        self._mark = environment[MARK] = uuid.uuid4().hex  # a new one: the parent process may be a job, too
        self._process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, __file__, str(psutil.Process().pid), self._mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C goes to the terminal's whole process group; the reaper must survive it.
            start_new_session=True,
        )

    def look(self) -> None:
        """Make it record all current descendants, before they lose their parents. If it was killed, another
        takes its place."""
        if self._process.poll() is not None:
            self._process = self._started()
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._process.stdout.readline()

    def finish(self) -> None:
        """Make it kill the remaining processes, and wait for it to end."""
        self._process.communicate()


def main(job: int, mark: str) -> None:
    """Watch process `job` until standard input closes, then end its descendants."""
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
        children = psutil.Process(job).children(recursive=True)
    except psutil.Error:
        return set()
    return {process for process in children if process.pid != psutil.Process().pid}


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _marked(mark: str) -> list[psutil.Process]:
    """The job's processes by their environment: this finds those too young to have been recorded. (Older
    ones may have overwritten their environment with a process title.)"""
    marked = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.pid != psutil.Process().pid:
                marked.append(process)
        except psutil.Error:
            continue
    return marked


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
