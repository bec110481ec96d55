"""Tries the tests themselves: twenty small faults in the commit code, one at a time, each in a copy of the project.

`python -m tests.chaos.mutants` says of each whether the random faults notice it, and whether the nearest tests do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos.__main__ import keep

REPOSITORY = Path(__file__).parents[2]
_SEEDS = 40
_COPIED = ("routelmt_batch", "tests", "jobs", "docs", "pyproject.toml")
_DISK = "files/disk.py", "tests/files/test_power.py tests/job/test_takeover.py"
_LOG = "store/log.py", "tests/store/test_log.py tests/job/test_takeover.py"
_LEDGER = "store/ledger.py", "tests/store/test_log.py tests/job/test_resume.py tests/job/test_takeover.py"
_FLOW = "tests/stages/test_flow.py::test_"
_OUTPUTS = (
    "stages/outputs.py",
    f"{_FLOW}a_shard_that_changes_before_it_is_assembled_is_named tests/job/test_clean.py",
)


@dataclass(frozen=True)
class Mutant:
    """`old` in a module of the package becomes `new`; `tests` are the nearest ones."""

    what: str
    place: tuple[str, str]
    old: str
    new: str

    @property
    def module(self) -> str:
        return self.place[0]

    @property
    def tests(self) -> list[str]:
        return self.place[1].split()


MUTANTS: Final = (
    Mutant("a file is named before it is durable", _DISK, "        sync(draft)\n", ""),
    Mutant(
        "a file's name is not made durable",
        _DISK,
        'reach("disk.named")\n        sync(self.path.parent)\n',
        'reach("disk.named")\n',
    ),
    Mutant(
        "a new folder's name is not made durable",
        _DISK,
        "path.mkdir(path.parent.stat().st_mode & 0o777)\n        sync(path.parent)",
        "path.mkdir(path.parent.stat().st_mode & 0o777)",
    ),
    Mutant(
        "a file is put over one that is there",
        _DISK,
        "os.link(draft, self.path)",
        "os.replace(draft, self.path)",
    ),
    Mutant(
        "a file is replaced though it changed meanwhile",
        _DISK,
        "if now != before or now != _stat(os.fstat(file.fileno())):",
        "if False:",
    ),
    Mutant(
        "the rows of a part are not read back",
        ("files/write.py", "tests/files/test_write.py"),
        "if rows != table.num_rows:",
        "if False:",
    ),
    Mutant("a segment may follow one of a later epoch", _LOG, " and self.epoch >= before.epoch", ""),
    Mutant(
        "a segment of another run is taken for its own", _LOG, "return segment.run == self.run", "return True"
    ),
    Mutant(
        "before a file is replaced, nobody looks for another writer",
        _LOG,
        "if path.exists() and not self._is_own(path):",
        "if False:",
    ),
    Mutant("a segment's checksum is not compared", _LOG, 'json.loads(last)["sha256"] == digest', "True"),
    Mutant(
        "records of an interrupted commit are not added",
        _LOG,
        "if rest := records[len(self.last.records) :]:",
        "if rest := records[:0]:",
    ),
    Mutant("tasks do not look for another writer", _LOG, "if segment.run != self._run:", "if False:"),
    Mutant("a job is taken though its writer lives", _LEDGER, "if not self.log.writer:", "if True:"),
    Mutant(
        "after a commit that failed, others may follow",
        _LEDGER,
        "            self._failure = error  # no later commit may succeed after one that did not\n",
        "",
    ),
    Mutant(
        "the last commits of a run are forgotten",
        _LEDGER,
        "                    self.flush()\n                    self.log.release()",
        "                    self.log.release()",
    ),
    Mutant(
        "what another run committed meanwhile is not seen",
        _LEDGER,
        "if self.log.last and self.log.next > seen:",
        "if False:",
    ),
    Mutant("parts of a later run are swept", _LEDGER, " and _epoch_of(path.name) < epoch", ""),
    Mutant(
        "a part is counted before it is committed",
        _LEDGER,
        "            self._waiting.append((failpoint, line))\n",
        "",
    ),
    Mutant(
        "a committed part may have another size",
        _LEDGER,
        "stat is None or stat.bytes != entry.bytes",
        "stat is None",
    ),
    Mutant(
        "an output shard is not verified at the end",
        _OUTPUTS,
        "            if changed:\n",
        "            if False:\n",
    ),
    Mutant(
        "the input is not compared before it is joined",
        _OUTPUTS,
        "        check_unchanged(shard, stop)\n",
        "",
    ),
    Mutant(
        "an output shard's rows are not counted",
        _OUTPUTS,
        "if written != rows or written != counted.rows:",
        "if False:",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.mutants", description=__doc__)
    parser.add_argument("--seeds", type=int, default=_SEEDS, help="of the random faults, for each mutant")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of mutants")
    parser.add_argument("--record", type=Path, help="a JSON file for the outcome")
    arguments = parser.parse_args()
    if any(killed_by(None, arguments.seeds).values()):
        raise SystemExit("what is not changed fails as well: mend it first")
    for number, mutant in enumerate(MUTANTS):
        if arguments.only and number not in arguments.only:
            continue
        began = time.monotonic()
        found: dict[str, object] = {"seed": number, "mutant": mutant.what, "module": mutant.module}
        found |= {"seeds": arguments.seeds, **killed_by(mutant, arguments.seeds)}
        print(f"{json.dumps(found)} ({time.monotonic() - began:.0f} s)", flush=True)
        if arguments.record:
            keep(arguments.record, "mutants", found)


def killed_by(mutant: Mutant | None, seeds: int) -> dict[str, bool]:
    """Whether random faults, or else the nearest tests, fail with a mutant; None: with the project as it is."""
    with tempfile.TemporaryDirectory(prefix="routelmt-mutant-") as name:
        folder = Path(name)
        for copied in _COPIED:
            source = REPOSITORY / copied
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / copied)
        if mutant:
            path = folder / "routelmt_batch" / mutant.module
            text = path.read_text(encoding="utf8")
            assert text.count(mutant.old) == 1, f"{mutant.what}: its place in {mutant.module} changed"
            path.write_text(text.replace(mutant.old, mutant.new), encoding="utf8")
        nearest = mutant.tests if mutant else []
        chaos = ["-m", "tests.chaos", "--seeds", str(seeds), "--until-broken"]
        tests = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not chaos and not engine"]
        noticed = _fails(folder, chaos)
        # The nearest tests are asked only about what the random faults do not notice.
        tried = bool(nearest) and not noticed
        return {"random faults": noticed, "nearest tests": tried and _fails(folder, [*tests, *nearest])}


def _fails(folder: Path, arguments: list[str]) -> bool:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *arguments]
    # Longer than either takes: what does not end is not said to be noticed.
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=3600)
    return bool(done.returncode)


if __name__ == "__main__":
    main()
