"""One submission of a job to a cluster, as Ray keeps it. It opens no connection."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

# Keys of a submission's metadata; the first marks it as ours.
VERSION, COMMAND, NAME, OUTPUT, ATTEMPT, ORDER, BY, NONCE = (
    "routelmt_batch",
    "command",
    "name",
    "output",
    "attempt",
    "order",
    "submitted_by",
    "nonce",
)
SUBMITTED = "ROUTELMT_SUBMITTED"  # the environment variable with a submitted job's id
_STOPPED = 143  # the exit code after SIGTERM; Ray records none for a job that it stopped
_DIGEST_LETTERS = 8


@dataclass(frozen=True)
class Submission:
    """`status` is Ray's: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED. `order` is a digest of the
    submitted command, spec and options. `nonce` is unique to one hand-over. Times are in UTC."""

    id: str
    command: str
    name: str
    output: str
    attempt: int
    order: str
    submitted_by: str
    nonce: str
    status: str
    driver_exit_code: int | None
    message: str
    started: datetime | None
    ended: datetime | None

    @classmethod
    def read(cls, details: JobDetails) -> Submission | None:
        """A submission from Ray's record; None if it is another tool's, or an unsubmitted driver."""
        metadata = details.metadata or {}
        if VERSION not in metadata or not details.submission_id:
            return None
        return cls(
            id=details.submission_id,
            command=metadata[COMMAND],
            name=metadata[NAME],
            output=metadata[OUTPUT],
            attempt=int(metadata[ATTEMPT]),
            order=metadata[ORDER],
            submitted_by=metadata[BY],
            nonce=metadata[NONCE],
            status=str(details.status.value),
            driver_exit_code=details.driver_exit_code,
            message=details.message or "",
            started=_time(details.start_time),
            ended=_time(details.end_time),
        )

    @property
    def live(self) -> bool:
        return self.status in ("PENDING", "RUNNING")

    @property
    def exit_code(self) -> int | None:
        """The exit code of its command: 128 + N if signal N killed it; None while live."""
        if self.live:
            return None
        if self.driver_exit_code is None:
            return {"STOPPED": _STOPPED, "SUCCEEDED": 0}.get(self.status, 1)
        return self.driver_exit_code if self.driver_exit_code >= 0 else 128 - self.driver_exit_code

    @property
    def seconds(self) -> float | None:
        """From its start to its end, or until now."""
        return ((self.ended or datetime.now(UTC)) - self.started).total_seconds() if self.started else None

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "command": self.command,
            "name": self.name,
            "output": self.output,
            "attempt": self.attempt,
            "submitted_by": self.submitted_by,
            "status": self.status,
            "exit_code": self.exit_code,
            "started": self.started and self.started.isoformat(timespec="seconds"),
            "ended": self.ended and self.ended.isoformat(timespec="seconds"),
        }


def submission_id(output: str, attempt: int) -> str:
    """The id of an output's nth submission. Ray accepts each id once, so one of two rivals is refused."""
    slug = re.sub(r"[^a-z0-9]+", "-", Path(output).name.lower()).strip("-")
    return "-".join(filter(None, ("routelmt", slug, digest(output), str(attempt))))


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:_DIGEST_LETTERS]


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
