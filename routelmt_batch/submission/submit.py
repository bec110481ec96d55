"""Submits jobs to a cluster: what is uploaded, under which id, and only one live job for each output."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from routelmt_batch import __version__
from routelmt_batch.errors import OutputError, RoutelmtError
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.spec import JobSpec, LabelSpec
from routelmt_batch.submission.cluster import Cluster
from routelmt_batch.submission.submissions import (
    ATTEMPT,
    BY,
    COMMAND,
    NAME,
    NONCE,
    ORDER,
    OUTPUT,
    SUBMITTED,
    VERSION,
    Submission,
    digest,
    submission_id,
)

SPEC_FILE = "spec.yaml"
# Ray kills a job this long after asking it to stop. Its default of 3 s is too short to close the engines.
_STOP_S = 60


@dataclass(frozen=True)
class Order:
    """What a submission runs. The spec has URIs, and absolute paths on the cluster. `options` are the
    command's arguments that set no key of the spec. `python` is the interpreter on the cluster's head. With
    `plan` the job is only planned."""

    spec: JobSpec | LabelSpec | TrainSpec
    options: tuple[str, ...] = ()
    python: str = "python"
    plan: bool = False

    @property
    def command(self) -> str:
        return "plan" if self.plan else self.spec.command

    @property
    def output(self) -> str:
        return self.spec.output.uri

    @property
    def sources(self) -> tuple[str, ...]:
        """Its input URIs, or a training's tables."""
        return tuple(self.spec.tables) if isinstance(self.spec, TrainSpec) else self.spec.input.uris

    @property
    def digest(self) -> str:
        return digest(self.command, self.spec.dump(), *self.options)

    @property
    def entrypoint(self) -> str:
        """With `exec`, Ray signals the job, not a shell, and gets the job's own exit code."""
        command = [self.python, "-m", "routelmt_batch", self.command, SPEC_FILE, "--address", "auto"]
        return f"exec {shlex.join([*command, *self.options])}"


def submit(cluster: Cluster, order: Order, attach: bool = False) -> tuple[Submission, bool]:
    """Submit a job, or with `attach` find it on the cluster. Returns the submission and whether it is new.

    If an earlier submission left the output unfinished, the new one continues it.

    Raises:
        OutputError: a submission of this output waits or runs.
        RoutelmtError: the cluster does not take the job.
    """
    before = cluster.latest(order.output)
    if before and before.live:
        return _attached(before, order, attach), False
    attempt = before.attempt + 1 if before else 1
    new, nonce = submission_id(order.output, attempt), uuid.uuid4().hex
    try:
        _hand_over(cluster, order, new, attempt, nonce)
    except RoutelmtError:
        now = cluster.latest(order.output)
        if not now or now.id != new:
            raise
        if now.nonce != nonce:  # another user submitted it a moment ago
            return _attached(now, order, attach) if now.live else _beaten(now), False
        return now, True  # Ray took the job, but its answer was lost
    return cluster.get(new), True


def _attached(running: Submission, order: Order, attach: bool) -> Submission:
    state = f"{order.output}: {running.id} uses this output ({running.status}, by {running.submitted_by})"
    if not attach:
        raise OutputError(
            f"{state}. `logs {running.id} --follow` shows its log, --attach uses it for this command, and "
            f"`stop {running.id}` ends it"
        )
    if running.order != order.digest:
        raise OutputError(
            f"{state}, with another command, spec or options. Run `stop {running.id}`, then submit again"
        )
    return running


def _beaten(ended: Submission) -> NoReturn:
    raise OutputError(
        f"{ended.output}: {ended.id}, by {ended.submitted_by}, was submitted a moment before and is "
        f"{ended.status}. See `logs {ended.id}`; submit again to continue"
    )


def _hand_over(cluster: Cluster, order: Order, new: str, attempt: int, nonce: str) -> None:
    # No credential travels: the nodes have their own, and everybody who reaches the dashboard reads all this.
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SPEC_FILE).write_text(order.spec.dump(), encoding="utf8")
        cluster.submit(
            new,
            order.entrypoint,
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(Path(__file__).parent.parent)],
                "excludes": ["__pycache__"],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), SUBMITTED: new},
            },
            metadata={
                VERSION: __version__,
                COMMAND: order.command,
                NAME: order.spec.name,
                OUTPUT: order.output,
                ATTEMPT: str(attempt),
                ORDER: order.digest,
                BY: f"{_user()}@{socket.gethostname()}",
                NONCE: nonce,
            },
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
