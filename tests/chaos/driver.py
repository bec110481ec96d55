"""A job with the made-up engine, in a process of its own that may be killed, stopped and cut off.

The process is forked from a server that has loaded everything but has no client of a store yet.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from rich.console import Console

from routelmt_batch.errors import Interrupted, RoutelmtError
from routelmt_batch.files import disk
from routelmt_batch.interrupts import stop_on_signals
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars, stderr_console
from routelmt_batch.spec.file import load
from routelmt_batch.store import ledger
from routelmt_batch.store.log import TakenOver
from routelmt_batch.tokens import load_tokenizer
from tests.chaos.layer import Layer
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine

# What a driver ended with, besides a job's own exit codes.
TAKEN_OVER, BUG = 17, 99
# So that a test need not wait half a minute for a run that is stopped.
LEASE_S, SIGN_OF_LIFE_S = 1.5, 0.3

for _library in ("pyarrow.dataset", "scipy.stats"):  # a job imports them late: half of its time
    importlib.import_module(_library)
for _name in ("small", "large", "router"):  # once, in the server
    load_tokenizer(str(MODELS / _name))


@dataclass(frozen=True)
class Start:
    """A job to run, and what happens to it at which of its steps; see layer.Layer.

    `sent` gets the rows that go to an engine, `sent`.said the words of a job that fails, and `shard` is the
    input shard that a fault changes to the bytes of `other`.
    """

    spec: Path
    output: str
    sent: Path
    kind: str = ""
    at: int = 0
    lasts: int = 1
    left: Path = Path()
    shard: Path = Path()
    other: Path = Path()
    environ: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()


def begin(start: Start) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.chaos.driver"])
    process = context.Process(target=_run, args=(start,))
    process.start()
    return process


def _run(start: Start) -> None:
    os.environ.update(start.environ)
    ledger.LEASE_S, ledger.SIGN_OF_LIFE_S, ledger._LOOK_S, ledger._GROUP_S = (
        LEASE_S,
        SIGN_OF_LIFE_S,
        0.05,
        0.1,
    )
    disk._PATIENCE_S = LEASE_S
    flow._draw_page = lambda workspace, bars: None  # its charts take half of the time
    if start.kind == "stderr":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)
    if "://" not in start.output:
        root = Path(start.output).parent
        change = lambda: start.shard.write_bytes(start.other.read_bytes())  # noqa: E731
        Layer(root, start.kind, start.at, start.lasts, start.left, change).install()
    os._exit(_code(start))


def _code(start: Start) -> int:
    bars = Bars(stderr_console()) if start.kind == "stderr" else Bars(Console(quiet=True), quiet=True)
    words, code = "", 0
    try:
        stop_on_signals()
        flow.run(
            load(start.spec, start.settings, output_uri=start.output),
            flow.Options(),
            bars,
            FakeEngine(start.sent).opened,
        )
    except RoutelmtError as error:
        words, code = str(error), TAKEN_OVER if isinstance(error, TakenOver) else error.exit_code
    except Interrupted as error:
        words, code = str(error), error.exit_code
    except OSError as error:  # the command says its words, and ends with 1
        words, code = str(error), 1
    except BaseException:
        words, code = traceback.format_exc(), BUG
    start.sent.with_suffix(".said").write_text(words)
    return code
