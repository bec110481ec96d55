"""A job from and to an object store beside the same job on a disk, with a made-up engine.

    make bench                                            # after the engines; three rounds
    python tests/benchmarks/store.py --copies 10 --rounds 1

The demo's input, each shard 50 times as long (or, with --many-shards, 50 copies of each), is read, committed and
assembled: the engine answers at once, so that only the store's part of a job counts. The store is moto's S3
server on this machine, a Python program that shares the cores with the job. One more job goes through a proxy
that counts requests.

Writes OUT/store.json: medians, every run, requests by method, and what they would cost at list price.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from routelmt_batch.files import bucket
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from tests.benchmarks.engines import DEMO, REPOSITORY, machine
from tests.fake_engine import FakeEngine
from tests.files.proxy import faulty
from tests.files.s3 import S3Server, s3_server

# Dollars a request in S3 Standard, us-east-1: https://aws.amazon.com/s3/pricing/. Deletes are free.
PRICE = {
    "put": 0.005 / 1000,
    "list": 0.005 / 1000,
    "get": 0.0004 / 1000,
    "head": 0.0004 / 1000,
    "delete": 0.0,
}
SETTINGS = ("checks.enabled=false", "page.rows=0", "input.fold=off")  # all copies are rows to read and write


def corpus(folder: Path, copies: int, many_shards: bool) -> int:
    """The demo's input, several times over; returns the number of rows."""
    for source in sorted((DEMO / "input").rglob("*.parquet")):
        path = folder / source.relative_to(DEMO / "input")
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pq.read_table(source, partitioning=None)
        if many_shards:
            for copy in range(copies):
                pq.write_table(table, path.with_stem(f"{path.stem}-{copy}"))
        else:
            pq.write_table(pa.concat_tables([table] * copies), path)
    return sum(pq.read_metadata(path).num_rows for path in folder.rglob("*.parquet"))


def job(source: str, output: str, log: Path, part_rows: int) -> float:
    """Run the job; returns its seconds."""
    uris = (f"input.uri={source}", f"output.uri={output}")
    settings = (*SETTINGS, *uris, f"run.part_rows={part_rows}")
    started = time.perf_counter()
    flow.run(load(DEMO / "job.yaml", settings), flow.Options(), Bars.none(), FakeEngine(log).opened)
    return time.perf_counter() - started


def use(environ: dict[str, str]) -> None:
    os.environ.update(environ)
    bucket._store.cache_clear()


def measure(server: S3Server, folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    rows = corpus(folder / "in", settings.copies, settings.many_shards)
    server.put_folder(folder / "in", "in")
    seconds: dict[str, list[float]] = {"disk": [], "store": []}
    log, part_rows = folder / "sent.log", settings.part_rows
    for number in range(settings.rounds + 1):
        use(server.environ)
        disk = job(str(folder / "in"), str(folder / f"out-{number}"), log, part_rows)
        store = job(server.uri("in"), server.uri(f"out-{number}"), log, part_rows)
        if number:  # the first warms up
            seconds["disk"].append(disk)
            seconds["store"].append(store)
    with faulty(server) as proxy:
        use(proxy.environ)
        job(server.uri("in"), server.uri("counted"), log, part_rows)
        requests = dict(proxy.counts)
    medians = {where: statistics.median(runs) for where, runs in seconds.items()}
    return {
        "machine": machine(),
        "rows": rows,
        "shards": len(list((folder / "in").rglob("*.parquet"))),
        "rounds": settings.rounds,
        "seconds": seconds,
        **{f"{where}_rows_s": rows / median for where, median in medians.items()},
        "ratio": medians["disk"] / medians["store"],
        "requests": requests,
        "requests_per_1000_rows": 1000 * sum(requests.values()) / rows,
        "dollars_per_million_rows": 1e6
        / rows
        * sum(PRICE.get(of, 0.0) * count for of, count in requests.items()),
    }


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['rows']:,} rows in {found['shards']} shards, medians of {found['rounds']}")
    for column in ("", "disk", "store", "store / disk"):
        table.add_column(column, justify="left" if not column else "right")
    rates = [found[f"{where}_rows_s"] for where in ("disk", "store")]
    table.add_row("rows/s", *(f"{rate:.0f}" for rate in rates), f"{found['ratio']:.2f}")
    table.add_row("requests a 1,000 rows", "", f"{found['requests_per_1000_rows']:.0f}", "")
    table.add_row("dollars a million rows", "", f"{found['dollars_per_million_rows']:.3f}", "")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--many-shards", action="store_true")
    parser.add_argument("--part-rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "bench")
    settings = parser.parse_args()
    settings.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=settings.out) as name,
        s3_server(Path(name) / "s3") as server,
    ):
        found = measure(server, Path(name), settings)
    (settings.out / "store.json").write_text(json.dumps(found, indent=2) + "\n")
    show(found)
    print(settings.out / "store.json")


if __name__ == "__main__":
    main()
