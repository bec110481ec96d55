"""All of a job but its engines, at N rows in S shards: seconds and memory by stage, and a resume after a kill.

    python -m tests.benchmarks.scale --rows 1_000_000
    python -m tests.benchmarks.scale --rows 1_000_000 10_000_000 --shards 100     # compares the driver's peaks
    python -m tests.benchmarks.scale --rows 1_000_000 --nodes 3                   # nodes of a local Ray cluster
    python -m tests.benchmarks.scale --rows 1_000_000 --kills 5                   # kills at random moments
    python -m tests.benchmarks.scale --rows 10_000_000 --duplicates 0.4 --again 0.8 --no-kill   # fold and reuse

In the engines' place, actors make up scores and translations a batch at a time; all else is a job's own: Ray
Data, reading, parts, the log, the plan, checks, assembly, report. Each size runs twice, in a process of its own:
once from start to end, and once killed by SIGKILL when half of the translations are committed, then resumed.
With --kills, another run is killed so many times, each time after a random part of a third of the whole run's
seconds, and resumed at last.

Writes OUT/scale.json. Ends with 1 if the driver's peak of memory grows by more than a tenth from one size to
the next from a million rows on, or if a resumed job's data differ from the other's.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from routelmt_batch.engines.session import Session
from routelmt_batch.interrupts import stop_on_signals
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.rows import SCORES, TRANSLATIONS
from routelmt_batch.spec.file import load
from routelmt_batch.store.folder import Folder
from tests.benchmarks.engines import DEMO, REPOSITORY, machine
from tests.benchmarks.made_up import MadeUpPools
from tests.engines.test_nodes import Cluster

WORDS = np.array(
    [
        "the",
        "a",
        "of",
        "in",
        "on",
        "house",
        "river",
        "green",
        "small",
        "talk",
        "walks",
        "sees",
        "takes",
        "gives",
        "old",
        "new",
    ]
)


def corpus(folder: Path, rows: int, shards: int, duplicates: float, new: float = 0.0) -> None:
    """English sentences of made-up words, and a number for each row. A share of the rows, `duplicates`, repeat
    any row before them. A share of the texts are `new`: a corpus without has none of them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    sentences = [" ".join(random.choice(WORDS, size)) for size in random.integers(4, 24, 4096)]
    known = pa.array(sentences)
    ends = np.linspace(0, rows, shards + 1).astype(int)
    for shard, (first, end) in enumerate(itertools.pairwise(ends)):
        number = np.arange(first, end)
        of = np.where(random.random(len(number)) < duplicates, random.integers(0, number + 1), number)
        of += rows * (random.permutation(len(number)) < new * len(number))
        source = pc.binary_join_element_wise(
            known.take(pa.array(of % len(sentences))), pa.array(of).cast(pa.string()), " "
        )
        pq.write_table(
            pa.table({"source": source, "number": number}),
            folder / f"part-{shard:06d}.parquet",
            row_group_size=131_072,
        )


def job(folder: Path, output: str, address: str | None, again: str | None = None) -> dict[str, Any]:
    """Run the job in this process; its passes, its peak of memory, its parts, and where its tasks ran. With
    `again`, it is the next night's, which takes what that output has."""
    settings = [
        f"input.uri={folder / ('next' if again else 'in')}",
        *([f"reuse=[{folder / again}]"] if again else []),
        "input.source_lang=en",
        "input.target_lang=de",
        f"output.uri={folder / output}",
        "checks.enabled=true",
    ]
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # for Ray's processes
    spec = load(DEMO / "job.yaml", [*settings, "run.part_rows=16384"])
    began = time.time()
    notes = folder / f"{output}-tasks"
    notes.mkdir(exist_ok=True)
    with psutil_peak() as family:
        outcome = flow.run(
            spec,
            flow.Options(address=address),
            Bars(Console(stderr=True)),
            partial(made_up, address=address, notes=notes if address else None),
        )
    seconds, usage = time.time() - began, resource.getrusage(resource.RUSAGE_SELF)
    ledger = Folder.at(str(folder / output)).ledger()
    log = folder / output / "_job" / "log"
    return {
        "seconds": seconds,
        "driver_processor_seconds": usage.ru_utime + usage.ru_stime,
        "passes": outcome.report.as_json()["passes"],
        "driver_peak_mb": usage.ru_maxrss / 1024,
        "family_peak_mb": family["peak"],
        "calls": outcome.report.calls["score"],
        "folded_rows": outcome.report.folded_rows,
        "reused_rows": outcome.report.reused_rows,
        "parts": {stage.name: len(ledger.parts(stage)) for stage in (SCORES, TRANSLATIONS)},
        "tasks": {path.name: path.stat().st_size for path in sorted(notes.iterdir())},
        "log_mb": sum(path.stat().st_size for path in log.iterdir()) / 1e6,
    }


@contextlib.contextmanager
def made_up(folder: Folder, address: str | None, notes: Path | None) -> Iterator[MadeUpPools]:
    logs = folder.logs.path  # type: ignore[attr-defined]
    logs.mkdir(parents=True, exist_ok=True)
    with Session(logs, address, False, stop_on_signals) as session:
        pools = MadeUpPools(session)
        pools.notes = notes
        try:
            yield pools
        finally:
            pools.dismiss()


@contextlib.contextmanager
def psutil_peak() -> Iterator[dict[str, float]]:
    """The peak of the proportional memory of this process and all that come of it, in MB."""
    found, ended = {"peak": 0.0}, threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
            found["peak"] = max(found["peak"], total / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield found
    ended.set()
    thread.join()


def in_a_process(*arguments: Any) -> dict[str, Any]:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_send, args=(theirs, *arguments))
    process.start()
    theirs.close()
    found: dict[str, Any] = ours.recv()
    process.join()
    return found


def _send(connection: Any, *arguments: Any) -> None:
    connection.send(job(*arguments))


def until_half(output: Path, rows: int) -> Callable[[], bool]:
    """Whether half of the translations are committed."""
    ledger = Folder.at(str(output)).ledger()

    def reached() -> bool:
        ledger.catch_up()
        return ledger.rows(TRANSLATIONS) >= rows / 2

    return reached


def until(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def killed(folder: Path, output: str, address: str | None, reached: Callable[[], bool]) -> None:
    """Run the job in a process that is killed at some point."""
    process = multiprocessing.get_context("spawn").Process(target=job, args=(folder, output, address))
    process.start()
    while not reached() and process.is_alive():
        time.sleep(0.2)
    with contextlib.suppress(psutil.NoSuchProcess):  # it has finished before
        driver = psutil.Process(process.pid)
        for one in [driver, *driver.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                one.send_signal(signal.SIGKILL)
    process.join()


def resumed(folder: Path, output: str, address: str | None) -> dict[str, Any]:
    """Resume a killed job; also the seconds until it commits its first part."""
    ledger = Folder.at(str(folder / output)).ledger()
    before, began, first = ledger.rows(TRANSLATIONS), time.time(), [0.0]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1) and not first[0]:
            ledger.catch_up()
            if ledger.rows(TRANSLATIONS) > before:
                first[0] = time.time() - began

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    found = in_a_process(folder, output, address)
    ended.set()
    thread.join()
    return found | {"first_commit_seconds": first[0], "rows_before": before}


def digest(data: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(data.rglob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches():
            for column in batch.columns:
                total.update(repr(column.to_pylist()).encode())
    return total.hexdigest()


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[str | None]:
    """Ray nodes on this machine; yields the address of their head. None for a single node."""
    if nodes < 2:
        yield None
        return
    os.environ["PYTHONPATH"] = str(REPOSITORY)  # for Ray's processes
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as temporary,
        tempfile.TemporaryDirectory() as folder,
    ):
        started = Cluster(Path(folder), temporary)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": started.token}
        try:
            for _ in range(nodes - 1):
                started.join()
            yield started.address
        finally:
            for node in reversed(started.nodes):
                node.kill()


def measured(rows: int, options: argparse.Namespace, address: str | None) -> dict[str, Any]:
    shards = options.shards or max(4, rows // 250_000)
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        folder = Path(name)
        corpus(folder / "in", rows, shards, options.duplicates)
        found: dict[str, Any] = {"rows": rows, "shards": shards, "duplicates": options.duplicates}
        found["whole"] = in_a_process(folder, "out", address)
        data = digest(folder / "out/data") if options.kills or not options.no_kill else ""
        if options.again is not None:
            corpus(folder / "next", rows, shards, options.duplicates, 1 - options.again)
            found["again"] = in_a_process(folder, "again", address, "out")
        if not options.no_kill:
            killed(folder, "killed", address, until_half(folder / "killed", found["whole"]["calls"]))
            found["resumed"] = resumed(folder, "killed", address)
            found["equal"] = data == digest(folder / "killed/data")
        if options.kills:
            random, whole = np.random.default_rng(options.seed), found["whole"]["seconds"]
            moments = random.uniform(0, whole / 3, options.kills)
            for moment in moments:
                killed(folder, "often", address, until(moment))
            found["kills"] = [round(float(moment), 1) for moment in moments]
            found["after_kills"] = resumed(folder, "often", address)
            found["equal"] = found.get("equal", True) and data == digest(folder / "often/data")
        return found


def show(sizes: list[dict[str, Any]]) -> None:
    for found in sizes:
        whole, resume = found["whole"], found.get("resumed")
        for name, run in (("", whole), (" the next night", found.get("again"))):
            if run:
                title = f"{found['rows']:,} rows, {found['shards']:,} shards{name}"
                table = Table(title, "seconds", "µs a row")
                for line in [*run["passes"], {"name": "all", "seconds": run["seconds"]}]:
                    seconds = line["seconds"]
                    table.add_row(line["name"], f"{seconds:.1f}", f"{seconds / found['rows'] * 1e6:.1f}")
                Console().print(table)
                print(f"{run['calls']:,} calls, {run['folded_rows']:,} folded, reused {run['reused_rows']}")
        print(
            f"driver {whole['driver_processor_seconds']:.0f} processor seconds and "
            f"{whole['driver_peak_mb']:.0f} MB, family {whole['family_peak_mb']:.0f} MB; "
            f"parts {whole['parts']}, log {whole['log_mb']:.2f} MB"
        )
        for task, count in whole["tasks"].items():
            print(f"{task}: {count} tasks")
        if resume:
            print(
                f"resumed with {resume['rows_before']:,} translations: first commit after "
                f"{resume['first_commit_seconds']:.1f} s, driver {resume['driver_peak_mb']:.0f} MB, "
                f"{'the same data' if found['equal'] else 'OTHER DATA'}"
            )
        if "kills" in found:
            print(
                f"killed after {found['kills']} s: {found['after_kills']['seconds']:.0f} s for the rest, "
                f"{'the same data' if found['equal'] else 'OTHER DATA'}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--shards", type=int)
    parser.add_argument("--duplicates", type=float, default=0.0, help="share of rows that repeat another")
    parser.add_argument("--again", type=float, help="share of the rows that a next night has, too")
    parser.add_argument("--nodes", type=int, default=1, help="Ray nodes, on this machine")
    parser.add_argument("--no-kill", action="store_true", help="without the run that is killed and resumed")
    parser.add_argument("--kills", type=int, default=0, help="kills at random moments of another run")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--scratch", help="folder for the corpus and the outputs")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    sizes = []
    with cluster(options.nodes) as address:
        for rows in options.rows:
            sizes.append(measured(rows, options, address))
            show(sizes[-1:])
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "nodes": options.nodes, "sizes": sizes}
    (options.out / "scale.json").write_text(json.dumps(found, indent=1) + "\n")
    peaks = [size["whole"]["driver_peak_mb"] for size in sizes if size["rows"] >= 1_000_000]
    grows = any(after > 1.1 * before for before, after in itertools.pairwise(peaks))
    if grows:
        print(f"the driver's peak of memory grows with the rows: {peaks} MB", file=sys.stderr)
    return int(grows or not all(size.get("equal", True) for size in sizes))


if __name__ == "__main__":
    sys.exit(main())
