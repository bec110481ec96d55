"""A job handed to a cluster: what travels with it, under which id, and that no output is worked on twice."""

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
# Ray kills a job this long after it asked it to stop; its own 3 s are less than closing the engines takes.
_STOP_S = 60


@dataclass(frozen=True)
class Order:
    """What a submission asks for. The spec's paths are absolute, as the cluster sees them; `options` are
    those of the command that are no key of the spec; `python` is the interpreter on the cluster's head. With
    `plan` a job is only planned."""

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
        """What it reads."""
        return tuple(self.spec.tables) if isinstance(self.spec, TrainSpec) else self.spec.input.uris

    @property
    def digest(self) -> str:
        return digest(self.command, self.spec.dump(), *self.options)

    @property
    def entrypoint(self) -> str:
        """`exec`: Ray's signal and exit code are the job's own, not a shell's."""
        command = [self.python, "-m", "routelmt_batch", self.command, SPEC_FILE, "--address", "auto"]
        return f"exec {shlex.join([*command, *self.options])}"


def submit(cluster: Cluster, order: Order, attach: bool = False) -> tuple[Submission, bool]:
    """Hand a job over, or with `attach` find it running there; give the submission, and whether it is new.

    An output that an earlier submission left unfinished is gone on with.

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
        if now.nonce != nonce:  # somebody else's, of a moment ago
            return _attached(now, order, attach) if now.live else _beaten(now), False
        return now, True  # the answer alone was lost
    return cluster.get(new), True


def _attached(running: Submission, order: Order, attach: bool) -> Submission:
    who = f"{order.output}: {running.id} works on it ({running.status}, by {running.submitted_by})"
    if not attach:
        raise OutputError(f"{who}. `logs {running.id} --follow` shows it, --attach takes it, `stop` ends it")
    if running.order != order.digest:
        raise OutputError(
            f"{who}, with another command, spec or options. `stop {running.id}`, then submit again"
        )
    return running


def _beaten(ended: Submission) -> NoReturn:
    raise OutputError(
        f"{ended.output}: {ended.id}, by {ended.submitted_by}, came a moment before and is {ended.status}. "
        f"`logs {ended.id}` shows it; submit again to go on"
    )


def _hand_over(cluster: Cluster, order: Order, new: str, attempt: int, nonce: str) -> None:
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
