"""`evaluate` on a table of a million rows: seconds and memory, beside a plain sort in numpy.

    python tests/benchmarks/evaluate_rows.py --rows 1000000 --routers 4

A synthetic label table of four directions with score columns goes through the command itself, in a process
of its own. The reference, in another one, reads the same file and computes one number a router by a full
sort: MeanDelta over all rows. Both numbers must agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

DIRECTIONS = (("de", "en"), ("en", "de"), ("en", "zh"), ("zh", "en"))
REFERENCE = """
import json, sys
import numpy as np, pyarrow.parquet as pq
path, k, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
table = pq.read_table(path, columns=["quality_small", "quality_large", *names])
gain = table["quality_large"].to_numpy() - table["quality_small"].to_numpy()
order = {name: np.argsort(-table[name].to_numpy(), kind="stable")[:k] for name in names}
print(json.dumps({name: float(gain[rows].mean()) for name, rows in order.items()}))
"""


@dataclass(frozen=True)
class Run:
    output: str
    seconds: float
    peak_bytes: int


def make_table(path: Path, rows: int, routers: list[str]) -> None:
    """Gains with the spread of real ones, and scores that know them more or less."""
    draw = np.random.default_rng(0)
    small = draw.uniform(20, 90, rows)
    gain = draw.normal(10, 24, rows)
    directions = draw.integers(0, len(DIRECTIONS), rows)
    columns = {
        "source_lang": np.array([source for source, _ in DIRECTIONS])[directions],
        "target_lang": np.array([target for _, target in DIRECTIONS])[directions],
        "quality_small": small,
        "quality_large": small + gain,
    }
    scores = {
        name: (gain + draw.normal(0, 24 * (at + 1), rows)).astype(np.float32)
        for at, name in enumerate(routers)
    }
    pq.write_table(pa.table(columns | scores), path)


def measured(command: list[str]) -> Run:
    """Run a command; its memory and its children's is looked at twenty times a second."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, family_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return Run(output, time.perf_counter() - started, peak)


def family_bytes(pid: int) -> int:
    """Resident memory of a process and its children; 0 once it is gone."""
    try:
        process = psutil.Process(pid)
        return sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--routers", type=int, default=4, help="score columns")
    parser.add_argument("--resamples", type=int, help="of the bootstrap; default: evaluate's own")
    arguments = parser.parse_args()
    budget = Decimal("0.3")
    routers = [f"router-{at}" for at in range(arguments.routers)]
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "labels.parquet", Path(folder) / "out"
        make_table(table, arguments.rows, routers)
        command = [sys.executable, "-m", "routelmt_batch", "evaluate", str(table), "--out", str(out)]
        command += ["--budget", str(budget), *(word for name in routers for word in ("--scores", name))]
        if arguments.resamples:
            command += ["--resamples", str(arguments.resamples)]
        ours = measured(command)
        k = str(int(budget * arguments.rows))
        reference = measured([sys.executable, "-c", REFERENCE, str(table), k, *routers])
        found = json.loads((out / "evaluation.json").read_text(encoding="utf8"))
    for name, expected in json.loads(reference.output).items():
        value = found["routers"][name]["overall"]["mean_delta"]["value"]
        assert abs(value - expected) < 1e-9 * abs(expected), (name, value, expected)
    print(
        f"{arguments.rows:,} rows, {len(routers)} score columns, {len(DIRECTIONS)} directions, "
        f"{found['resamples']} resamples"
    )
    for name, run in (("evaluate", ours), ("MeanDelta by a full sort, no bootstrap", reference)):
        print(f"{name}: {run.seconds:.1f} s, {run.peak_bytes / 1e6:,.0f} MB at the peak")


if __name__ == "__main__":
    main()
