"""Submissions as tables on a terminal. It formats; it makes no requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta

from rich.box import SIMPLE_HEAD
from rich.table import Table

from routelmt_batch.submission.submissions import Submission


def listed(submissions: Iterable[Submission], current: Mapping[str, str]) -> Table:
    """All submissions; `current` is what those that run are doing, by id."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("id", no_wrap=True)
    for name in ("command", "status", "started", "progress"):
        table.add_column(name, no_wrap=True)
    table.add_column("output", overflow="fold")
    for submission in submissions:
        code = f" {submission.exit_code}" if submission.exit_code else ""
        status = submission.status + code
        doing = current.get(submission.id, "")
        table.add_row(
            submission.id, submission.command, status, _started(submission), doing, submission.output
        )
    return table


def details(submission: Submission, why: str | None = None) -> Table:
    """One submission, and `why` it ended: the message of its job."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(submission.id)
    table.add_column("", overflow="fold")
    table.add_row("status", submission.status)
    table.add_row("command", submission.command)
    table.add_row("job", f"{submission.name}, attempt {submission.attempt}, by {submission.submitted_by}")
    table.add_row("output", submission.output)
    table.add_row(
        "started", f"{_started(submission)}, {_took(submission)}" if submission.started else "not yet"
    )
    if submission.exit_code is not None:
        table.add_row("exit code", str(submission.exit_code))
    if why:
        table.add_row("message", why)
    if submission.status in ("PENDING", "FAILED") and submission.driver_exit_code is None:
        table.add_row("Ray's message", submission.message)
    return table


def _started(submission: Submission) -> str:
    return f"{submission.started.astimezone():%m-%d %H:%M}" if submission.started else ""


def _took(submission: Submission) -> str:
    seconds = submission.seconds
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))
