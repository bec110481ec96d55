"""How far submitted jobs are, read from their outputs on disks and in stores. It asks no cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from routelmt_batch.errors import RoutelmtError
from routelmt_batch.job import flow
from routelmt_batch.learning.labelling import label
from routelmt_batch.store.folder import Folder
from routelmt_batch.submission.submissions import Submission

# A long log in a store far away takes seconds. Without credentials a store's client tries for minutes.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Progress:
    """`stages` are [done, total] by name; None before a job has begun, for a training, and if its output
    cannot be read from here: then `fault` says why."""

    stages: dict[str, list[int]] | None = None
    fault: str | None = None

    @property
    def current(self) -> str:
        """The first stage that is not done, or the last one, with its numbers; empty if not known."""
        stages = list((self.stages or {}).items())
        left = [stage for stage in stages if stage[1][0] < stage[1][1]] or stages[-1:]
        return "".join(f"{name} {done}/{total}" for name, (done, total) in left[:1])


def progress(submissions: Sequence[Submission]) -> list[Progress]:
    """Read the outputs of some submissions, all at once."""
    found = [Progress(fault=f"no answer within {_PATIENCE_S:.0f} s") for _ in submissions]

    def look(place: int) -> None:
        found[place] = _read(submissions[place])

    # Daemons, because the command must not wait for a store that does not answer.
    threads = [threading.Thread(target=look, args=(place,), daemon=True) for place in range(len(found))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + _PATIENCE_S
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    return list(found)


def _read(submission: Submission) -> Progress:
    work = label if submission.command == "label" else flow
    try:
        folder = Folder.at(submission.output)
        return Progress(work.unfinished(folder)["stages"] if folder.read_manifest() else None)
    except (RoutelmtError, OSError) as error:
        return Progress(fault=str(error))
