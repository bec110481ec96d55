"""The exact cut, twenty budgets and eighteen deciles of N committed gains, beside just reading them.

    python -m tests.benchmarks.selection                     # 10^7 gains
    python -m tests.benchmarks.selection --rows 100_000_000 --rounds 1 --equal

The scores lie in parts as a job commits them. Each measurement has a process of its own, so that its peak of
memory is its own. With `duckdb` installed, its out-of-core ORDER BY finds one cut, as the simple rival.

Writes OUT/selection.json: medians, every run, peaks, and ratios to reading the gains.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.rows import SCORES
from routelmt_batch.stages.gains import CommittedGains
from routelmt_batch.stages.passes import part_writer
from routelmt_batch.stats.selection import GainOrder, places
from routelmt_batch.store.ledger import Ledger
from tests.benchmarks.engines import machine

PLACES = [Decimal(step) / 20 for step in range(1, 21)] + [Decimal(step) / 19 for step in range(1, 19)]
SHARD_ROWS = 1_000_000


@dataclass(frozen=True)
class Committed:
    """What CommittedGains reads of a workspace."""

    ledger: Ledger
    ranks: dict[str, int]
    folded_rows: int = 0

    @classmethod
    def at(cls, work: Path, rows: int) -> Committed:
        shards = [f"part-{shard:05d}.parquet" for shard in range(-(-rows // SHARD_ROWS))]
        return cls(Ledger(DiskLocation(work)), {shard: rank for rank, shard in enumerate(shards)})


def commit(work: Path, rows: int, part_rows: int, equal: bool) -> None:
    """Commit made-up scores; as in a job, parts come in no order, and a few span two shards."""
    committed = Committed.at(work, rows)
    random = np.random.default_rng(7)
    shards = np.array(list(committed.ranks))
    with committed.ledger.writing():
        write = part_writer(committed.ledger, SCORES)
        for part in random.permutation(-(-rows // part_rows)):
            row = np.arange(part * part_rows, min(rows, (part + 1) * part_rows))
            gain = np.full(len(row), 2.5) if equal else random.standard_normal(len(row)) * 5
            columns = [
                shards[row // SHARD_ROWS],
                row % SHARD_ROWS,
                gain.astype(np.float32),
                random.integers(20, 90, len(row), dtype=np.int32),
                pa.nulls(len(row), pa.int16()),
                pa.nulls(len(row), pa.string()),
            ]
            committed.ledger.commit(write(pa.table(columns, schema=SCORES.schema)))


def read(work: Path, rows: int) -> None:
    gains = CommittedGains(Committed.at(work, rows))  # type: ignore[arg-type]
    assert sum(len(part.gain) for part in gains()) == rows


def read_twice(work: Path, rows: int) -> None:
    """The two reads of a selection: gains and weights, then also keys."""
    gains = CommittedGains(Committed.at(work, rows))  # type: ignore[arg-type]
    assert sum(len(part.gain) for keys in (False, True) for part in gains(keys)) == 2 * rows


def select(work: Path, rows: int) -> None:
    order = GainOrder(CommittedGains(Committed.at(work, rows)))  # type: ignore[arg-type]
    found = order.select([places(fraction, order.rows) for fraction in PLACES])
    assert [selected.rows for selected in found] == [int(fraction * rows) for fraction in PLACES]


def order_by(work: Path, rows: int) -> None:
    import duckdb

    connection = duckdb.connect(str(work / "rival.duckdb"))
    connection.execute("SET memory_limit = '512MB'")
    connection.execute(
        f"SELECT gain, shard, row FROM read_parquet('{work}/scores/*.parquet') WHERE NOT isnan(gain) "
        f"ORDER BY gain DESC, shard, row LIMIT 1 OFFSET {int(rows * 0.3)}"
    ).fetchall()


def measured(work: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    """Seconds, and by how many MB the process's peak of memory grew."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measure, args=(theirs, work, *arguments))
    process.start()
    theirs.close()
    seconds, megabytes = ours.recv()
    process.join()
    return seconds, megabytes


def _measure(connection: Any, work: Callable[..., None], *arguments: Any) -> None:
    before = _peak()
    started = time.perf_counter()
    work(*arguments)
    connection.send((time.perf_counter() - started, _peak() - before))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--part-rows", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--equal", action="store_true", help="give all rows the same gain")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    ways: dict[str, Callable[..., None]] = {"read once": read, "read twice": read_twice, "select": select}
    if importlib.util.find_spec("duckdb"):
        ways["DuckDB's ORDER BY"] = order_by
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        commit(work, options.rows, options.part_rows, options.equal)
        for _ in range(options.rounds):
            for name, way in ways.items():
                runs[name].append(measured(way, work, options.rows))
    print_and_write(runs, options)


def print_and_write(runs: dict[str, list[tuple[float, float]]], options: argparse.Namespace) -> None:
    medians = {name: statistics.median(seconds for seconds, _ in times) for name, times in runs.items()}
    table = Table("", "seconds", "ns a row", "of reading twice", "peak MB")
    for name, seconds in medians.items():
        table.add_row(
            name,
            f"{seconds:.2f}",
            f"{seconds / options.rows * 1e9:.1f}",
            f"{seconds / medians['read twice']:.2f}",
            f"{max(peak for _, peak in runs[name]):.0f}",
        )
    Console().print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    found: Collection[Any] = {
        "machine": machine(),
        "rows": options.rows,
        "part_rows": options.part_rows,
        "equal": options.equal,
        "places": len(PLACES),
        "ratio": {name: medians["select"] / medians[name] for name in ("read once", "read twice")},
        "runs": {
            name: [{"seconds": seconds, "peak_mb": peak} for seconds, peak in times]
            for name, times in runs.items()
        },
    }
    (options.out / "selection.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
