"""One seed: a job with its faults, run after run, and what must hold after each and at the end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests import oracle
from tests.chaos.driver import BUG, TAKEN_OVER, Start, begin
from tests.chaos.faults import Fault, drawn
from tests.conftest import COLUMNS, MODELS, write_shard
from tests.files.proxy import faulty
from tests.files.s3 import S3Server

FRACTION = "0.3"
_STAGES = ("scores", "translations", "checks")
_WAIT_S = 120
# The exit codes that a run with a fault may have.
_EXPECTED = {
    "kill": {0, -signal.SIGKILL},
    "late kill": {0, -signal.SIGKILL},
    "cut": {0, -signal.SIGKILL},
    "term": {0, 128 + signal.SIGTERM},
    # 1: the run that is stopped holds a file that it was replacing; the other says so, and ends.
    "stop": {0, 1, 2, TAKEN_OVER},
    "two": {0, 2, TAKEN_OVER},
    "full": {0, 1, 2},  # 2: the folder cannot be written when the run begins
    "io": {0, 1, 2},
    "input": {0, 2},
    "stderr": {0},
    "store": {0},
    "store kill": {0, -signal.SIGKILL},
    "store two": {0, 2, TAKEN_OVER},
}


class Broken(AssertionError):
    """What must hold did not."""


@dataclass
class Trial:
    """One seed's job. `met` has the faults that changed their run."""

    seed: int
    folder: Path
    server: S3Server | None = None
    met: list[str] = field(default_factory=list)
    runs: int = 0
    _held: dict[Path, set[str]] = field(default_factory=dict)  # rows that were committed when a run began

    def __post_init__(self) -> None:
        self.corpus = make_corpus(self.folder / "corpus")
        self.spec = write_spec(self.folder / "job.yaml", self.corpus)
        self.faults = drawn(self.seed)
        self.in_store = self.faults[0].kind.startswith("store")
        self.environ: dict[str, str] = {}
        (self.folder / "disk").mkdir()
        self.output = str(self.folder / "disk/out")
        if self.in_store:
            assert self.server, "seeds with a store need a server"
            self.output = self.server.uri(f"{self.folder.name}/out")
        self.other = write_shard(self.folder / "other.parquet", [f"Another {n}." for n in range(26)], 9)
        self.shard = self.corpus / "a.parquet"
        self.original = self.shard.read_bytes()

    def run(self, expected: dict[str, pa.Table]) -> None:
        """Raises Broken."""
        for fault in self.faults:
            before = self._committed()
            with self._faulty_store(fault):
                self._round(fault)
            self.shard.write_bytes(self.original)
            self._check_kept(before)
        process, start = self._begin()
        code = self._end(process, start)
        if code:
            raise Broken(f"without a fault, it did not go on: exit code {code}: {said(start)}")
        self._check_result(expected)

    @contextlib.contextmanager
    def _faulty_store(self, fault: Fault) -> Iterator[None]:
        if not self.in_store:
            yield
            return
        assert self.server
        with faulty(self.server, fault.store) as proxy:
            self.environ = proxy.environ
            yield
            self.met += [fault.kind] if proxy.met else []
        self.environ = self.server.environ

    def _round(self, fault: Fault) -> None:
        kind = fault.kind.removeprefix("store ")
        process, start = self._begin(fault)
        others = [self._begin(held=self._held[start.sent])] if kind == "two" else []
        if kind == "stop":
            others += self._while_stopped(process)
        if fault.after_s and kind.endswith("kill"):
            process.join(fault.after_s)
            process.kill()
        codes = [self._end(process, start)]
        codes += [
            other.exitcode if other.exitcode is not None else self._end(other, of) for other, of in others
        ]
        if fault.kind == "cut" and codes == [-signal.SIGKILL]:
            self._cut(start.left)
        if not set(codes) <= _EXPECTED[fault.kind]:
            words = "; ".join(said(it) for it in (start, *(of for _, of in others)))
            raise Broken(f"{fault}: ended with {codes}: {words}")
        if kind == "stop" and 1 in codes and codes.index(1) == 0:
            raise Broken(f"{fault}: the run that came back did not say why it ended: {said(start)}")
        if kind == "two" and 0 not in codes:
            raise Broken(f"{fault}: neither run came to its end: {codes}")
        changed = codes != [0] or kind == "stderr"
        self.met += [fault.kind] if changed and not self.in_store else []

    def _cut(self, left: Path) -> None:
        """The disk is what the power cut left. One commit may have been under way; no other may be lost."""
        before, after = (len(list((at / "out/_job/log").glob("*"))) for at in (self.folder / "disk", left))
        if after < before - 1:
            raise Broken(f"cut: of {before} segments of the log only {after} are left")
        shutil.rmtree(self.folder / "disk")
        left.rename(self.folder / "disk")

    def _while_stopped(self, process: ForkServerProcess) -> list[tuple[ForkServerProcess, Start]]:
        """If the run stops, another comes to its end, and changes no more when the first one comes back."""
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(process.pid)
            while process.is_alive() and own.status() != psutil.STATUS_STOPPED:
                time.sleep(0.02)
        if not process.is_alive():
            return []
        other = self._begin()
        try:
            code = self._end(*other)
            finished = self._contents() if code == 0 else None
        finally:
            os.kill(process.pid or 0, signal.SIGCONT)
        process.join(_WAIT_S)
        if finished is not None and self._contents() != finished:
            raise Broken("stop: the run that came back changed the job that another had finished")
        return [other]

    def _begin(
        self, fault: Fault | None = None, held: set[str] | None = None
    ) -> tuple[ForkServerProcess, Start]:
        self.runs += 1
        left = self.folder / f"left{self.runs}"
        start = Start(self.spec, self.output, self.folder / f"sent{self.runs}.log", environ=self.environ)
        if fault:
            left.mkdir()
            start = replace(start, kind=fault.kind, at=fault.at, lasts=fault.lasts, left=left)
            start = replace(start, shard=self.shard, other=self.other)
        self._held[start.sent] = committed_rows(self._committed()) if held is None else held
        return begin(start), start

    def _end(self, process: ForkServerProcess, start: Start) -> int:
        process.join(_WAIT_S)
        if process.is_alive():
            process.kill()
            raise Broken(f"a run did not end in {_WAIT_S} s")
        code = process.exitcode
        assert code is not None
        if code == BUG:
            raise Broken(f"a traceback: {said(start)}")
        sent = set(start.sent.read_text().splitlines()) if start.sent.exists() else set()
        if again := sent & self._held[start.sent]:
            raise Broken(f"{len(again)} committed rows were sent again, such as {min(again)}")
        return code

    def _disk(self) -> Path:
        """The output on a disk; a store's is downloaded."""
        if not self.in_store:
            return Path(self.output)
        assert self.server
        target = self.folder / "downloaded"
        shutil.rmtree(target, ignore_errors=True)
        return self.server.download(f"{self.folder.name}/out", target)

    def _committed(self) -> dict[str, tuple[str, pa.Table]]:
        """Every committed part by its path in the output: its hash and its rows."""
        output = self._disk()
        if not (output / "_job/log").is_dir():
            return {}
        found = {}
        try:
            for stage in _STAGES:
                for path in oracle.committed(output, stage):
                    rows = pq.read_table(path) if stage != "checks" else None
                    found[f"{stage}/{path.name}"] = (sha256(path), rows)
        except (AssertionError, OSError, ValueError) as error:
            raise Broken(f"what was committed is damaged: {error}") from error
        return found

    def _check_kept(self, before: dict[str, tuple[str, pa.Table]]) -> None:
        now = self._committed()
        for part, (digest, _) in before.items():
            if now.get(part, ("",))[0] != digest:
                raise Broken(f"the committed part {part} is gone or was changed")

    def _contents(self) -> dict[str, str]:
        """Every file that readers read, by its path: what the log and the manifest name, results, reports."""
        output = self._disk()
        named = {path for stage in _STAGES for path in oracle.committed(output, stage)}
        manifest = (output / "_job/manifest.json").read_text()
        named |= {path for path in (output / "_job/shards").iterdir() if path.name in manifest}
        return {
            str(path): sha256(path)
            for path in sorted(output.rglob("*"))
            if path.is_file() and not path.name.endswith("tmp")
            if path.parent.name not in (*_STAGES, "shards") or path in named
            if path.parent.name != "logs"
        }

    def _check_result(self, expected: dict[str, pa.Table]) -> None:
        output = self._disk()
        try:
            oracle.check(output, self.corpus, FRACTION)
        except (AssertionError, OSError, ValueError, KeyError) as error:
            raise Broken(f"the result is not whole: {error}") from error
        for name, table in results(output).items():
            if not table.equals(expected[name]):
                raise Broken(f"{name} differs from a clean run's")
        left = [path.name for path in output.rglob("*tmp")]
        left += [
            path.name
            for stage in _STAGES
            if (output / "_job" / stage).is_dir()
            for path in set((output / "_job" / stage).iterdir()) - set(oracle.committed(output, stage))
        ]
        if left:
            raise Broken(f"files of no use are left: {', '.join(left[:5])}")
        if left_alive() > 1:  # one is the server that forks them
            raise Broken("a run's process is left")


def left_alive() -> int:
    """Processes that were forked for runs and are alive, and the server that forks them."""
    alive = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            named = "multiprocessing.forkserver" in " ".join(process.cmdline())
            alive += named and process.status() != psutil.STATUS_ZOMBIE
    return alive


def committed_rows(parts: dict[str, tuple[str, pa.Table]]) -> set[str]:
    """The rows of committed parts, as the made-up engine notes what it is sent."""
    rows = set()
    for part, (_, table) in parts.items():
        stage, _, name = part.partition("/")
        if table is not None:
            label = "router" if stage == "scores" else name[:5]
            rows |= {
                f"{label} {it['shard']} {it['row']}" for it in table.select(["shard", "row"]).to_pylist()
            }
    return rows


def results(output: Path) -> dict[str, pa.Table]:
    """The output shards by name."""
    paths = sorted((output / "data").rglob("*.parquet"))
    return {path.relative_to(output / "data").as_posix(): pq.read_table(path) for path in paths}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def said(start: Start) -> str:
    path = start.sent.with_suffix(".said")
    return path.read_text().strip() if path.exists() else "nothing"


def make_corpus(root: Path) -> Path:
    """Three shards: several row groups, none, one in a subfolder; some rows that are skipped."""
    many: list[str | None] = [f"I saw a cat near the river, number {n}." for n in range(26)]
    many[3], many[4], many[5], many[8] = None, "", "far too long " * 200, many[7]
    write_shard(root / "a.parquet", many, row_group_size=9)
    write_shard(root / "b.parquet", [])
    languages = pa.array(["de"] * 10 + ["xx", None])
    write_shard(root / "sub/c.parquet", [f"Sub {n}." for n in range(12)], to=languages)
    return root


def write_spec(path: Path, corpus: Path) -> Path:
    pool = {"max_model_len_tokens": 256}
    spec = {
        "name": "chaos",
        "input": {"uri": str(corpus), "columns": COLUMNS},
        "output": {"uri": str(path.parent / "unused")},
        "models": {
            name: {"source": str(MODELS / name), "max_output_tokens": 64, **pool}
            for name in ("small", "large")
        },
        "router": {"source": str(MODELS / "router"), **pool},
        "budget": {"fraction": float(FRACTION)},
        "run": {"part_rows": 6},
    }
    path.write_text(yaml.safe_dump(spec))
    return path


def clean(folder: Path) -> dict[str, pa.Table]:
    """The results of a run without faults."""
    folder.mkdir()
    (folder / "disk").mkdir()
    spec = write_spec(folder / "job.yaml", make_corpus(folder / "corpus"))
    start = Start(spec, str(folder / "disk/out"), folder / "sent.log")
    process = begin(start)
    process.join(_WAIT_S)
    assert process.exitcode == 0, said(start)
    oracle.check(folder / "disk/out", folder / "corpus", FRACTION)
    return results(folder / "disk/out")
