"""A job in a process of its own, with the made-up engine. It may be killed and stopped.

The process is forked from a server that has loaded everything but has no client of a store yet: a client's
threads would not outlive a fork.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console

from routelmt_batch import failpoints
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from routelmt_batch.store.log import TakenOver
from routelmt_batch.tokens import load_tokenizer
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine

TAKEN_OVER = 17
BARS = Bars(Console(quiet=True), quiet=True)

for _name in ("small", "large", "router"):  # once, in the server
    load_tokenizer(str(MODELS / _name))


class _Slow(FakeEngine):
    """Each part takes a moment, so that two jobs are at work at the same time."""

    def run(self, lanes, tell):
        for receipt in super().run(lanes, tell):
            time.sleep(0.05)
            yield receipt


def _run(spec: str, settings: tuple[str, ...], log: str, environ: Mapping[str, str], slow: bool) -> None:
    os.environ.update(environ)
    engine = (_Slow if slow else FakeEngine)(Path(log))
    try:
        flow.run(load(spec, settings), flow.Options(), BARS, engine.opened)
    except RoutelmtError as error:
        Path(f"{log}.said").write_text(str(error))
        os._exit(TAKEN_OVER if isinstance(error, TakenOver) else error.exit_code)
    os._exit(0)


def start(
    spec: Path,
    log: Path,
    failpoint: str = "",
    environ: Mapping[str, str] | None = None,
    settings: tuple[str, ...] = (),
    slow: bool = False,
) -> ForkServerProcess:
    """Begin a job; what it says if it fails is in `log`.said."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.job.elsewhere"])
    variables = {**(environ or {}), failpoints.VARIABLE: failpoint}
    process = context.Process(target=_run, args=(str(spec), settings, str(log), variables, slow))
    process.start()
    return process


def said(log: Path) -> str:
    """What a job that failed said."""
    return Path(f"{log}.said").read_text()
