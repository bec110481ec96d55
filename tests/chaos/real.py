"""Seeds with real engines: `routelmt-batch run` with Ray and vLLM, one of its processes killed or stopped."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pyarrow as pa

from tests import oracle
from tests.chaos.trial import FRACTION, Broken, make_corpus, results, write_spec
from tests.engines.test_kill import Command, parts

# Each process by what its command has in it. The driver is the command itself.
PROCESSES: Final = {
    "driver": "",
    "actor": "EngineActor",
    "engine": "routelmt_batch.engines.child",
    "raylet": "raylet/raylet",
    "reaper": "engines/reaper.py",
}
FAULTS: Final = [(number, name) for number in ("SIGKILL", "SIGSTOP") for name in PROCESSES]
_STOPPED_S = 5.0
_LONGEST_S = 900.0
_WINDOW_S = 40.0  # about a run's length on two cores
# What a run may end with: without its driver or its raylet it cannot go on.
_EXPECTED = {("SIGKILL", "driver"): {0, -signal.SIGKILL}, ("SIGKILL", "raylet"): {0, 1}}


def run_all(seeds: Iterable[int]) -> Iterator[dict[str, object]]:
    """Run seeds; gives of each its fault and what came of it, and why it is `broken`, if it is."""
    with tempfile.TemporaryDirectory(prefix="routelmt-chaos-") as name:
        expected = _clean(Path(name) / "clean")
        for seed in seeds:
            folder = Path(name) / f"seed{seed}"
            folder.mkdir()
            number, process, after_s = _fault(seed)
            found: dict[str, object] = {
                "seed": seed,
                "fault": f"{number} to the {process}",
                "after_s": after_s,
            }
            try:
                yield found | _trial(seed, folder, expected)
            except (Broken, AssertionError) as error:
                yield found | {"broken": str(error)}


def _fault(seed: int) -> tuple[str, str, float]:
    """A signal, the process that gets it, and how long after that process was first seen, in seconds."""
    number, name = FAULTS[seed % len(FAULTS)]
    return number, name, round(random.Random(f"real {seed}").uniform(0, _WINDOW_S), 1)


def _clean(folder: Path) -> dict[str, pa.Table]:
    folder.mkdir()
    spec = _spec(folder)
    code, errors = _ended(Command(spec))
    assert code == 0, errors
    oracle.check(folder / "out", folder / "corpus", FRACTION)
    return results(folder / "out")


def _spec(folder: Path) -> Path:
    spec = write_spec(folder / "job.yaml", make_corpus(folder / "corpus"))
    text = spec.read_text().replace(str(folder / "unused"), str(folder / "out"))
    spec.write_text(text.replace("max_output_tokens: 64", "max_output_tokens: 32"))
    return spec


def _trial(seed: int, folder: Path, expected: dict[str, pa.Table]) -> dict[str, object]:
    number, name, after_s = _fault(seed)
    spec, output = _spec(folder), folder / "out"
    command = Command(spec)
    hit = _send(command, getattr(signal, number), PROCESSES[name], after_s)
    code, errors = _ended(command)
    if code not in _EXPECTED.get((number, name), {0}):
        raise Broken(f"ended with {code}: {errors[-1000:]}")
    if left := command.survivors(within_s=20):
        raise Broken(f"processes are left: {left}")
    before = parts(output) if (output / "_job/log").is_dir() else {}
    if code:
        again = Command(spec)
        last, errors = _ended(again)
        if last:
            raise Broken(f"it did not go on: {last}: {errors[-1000:]}")
        if left := again.survivors(within_s=20):
            raise Broken(f"processes are left: {left}")
    now = parts(output)
    if any(now.get(part) != digest for part, digest in before.items()):
        raise Broken("a committed part is gone or was changed")
    rows = oracle.check(output, folder / "corpus", FRACTION)  # it sees rows that were scored twice
    sent = sum(
        span[0]
        for line in oracle.log(output)
        if line.get("stage") == "translations"
        for span in line["spans"].values()
    )
    if sent != sum(row["status"] != "skipped" for row in rows.values()):
        raise Broken(f"{sent} rows were translated of {len(rows)}")
    return {
        "met": hit,
        "exit_code": code,
        "parts_committed_before": len(before),
        "rows_other_than_clean": _others(results(output), expected),
    }


def _ended(command: Command) -> tuple[int, str]:
    """Its exit code and what it said."""
    try:
        return command.finish(_LONGEST_S)
    except subprocess.TimeoutExpired:
        for process in [psutil.Process(command.process.pid), *command.family]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        raise Broken(f"it did not end in {_LONGEST_S:.0f} s") from None


def _send(command: Command, number: signal.Signals, name: str, after_s: float) -> bool:
    """Send a signal to a process some time after it is there; a stopped one goes on after a while."""
    process = _find(command, name)
    time.sleep(after_s if process else 0)
    process = _find(command, name, within_s=1)
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)
        if number == signal.SIGSTOP:
            time.sleep(_STOPPED_S)
            process.send_signal(signal.SIGCONT)
        return True
    return False


def _find(command: Command, name: str, within_s: float = 120) -> psutil.Process | None:
    """The command itself, or the newest of its processes whose command has a name in it."""
    until = time.monotonic() + within_s
    while command.process.poll() is None and time.monotonic() < until:
        if not name:
            return psutil.Process(command.process.pid)
        with contextlib.suppress(psutil.Error, RuntimeError):
            family = sorted(command.family, key=lambda process: -process.create_time())
            for process in family:
                if process.is_running() and name in " ".join([process.name(), *process.cmdline()]):
                    return process
        time.sleep(0.1)
    return None


def _others(found: dict[str, pa.Table], expected: dict[str, pa.Table]) -> int:
    """Rows whose route or translation is not a clean run's: ties between tokens may fall otherwise."""
    columns = ["translation", "route", "planned_route", "status", "reason"]
    return sum(
        a != b
        for name, table in found.items()
        for a, b in zip(
            table.select(columns).to_pylist(), expected[name].select(columns).to_pylist(), strict=True
        )
    )
