"""Random faults, seed after seed: `python -m tests.chaos --seeds 200` runs them and writes a record."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.faults import KINDS
from tests.chaos.trial import Broken, Trial, clean
from tests.files.s3 import S3Server, s3_server


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--real", type=int, default=0, help="seeds with Ray and vLLM instead")
    parser.add_argument("--until-broken", action="store_true", help="end with the first broken seed")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no seed after so long")
    parser.add_argument("--keep", type=Path, help="where the folders of broken seeds go")
    parser.add_argument(
        "--record", type=Path, help="a JSON file for what was run, such as docs/pages/chaos.json"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    if arguments.real:
        from tests.chaos import real

        name, found = "real engines", real.run_all(range(arguments.first, arguments.first + arguments.real))
    else:
        name, found = (
            "made-up engine",
            run_all(arguments.first, arguments.seeds, arguments.keep, arguments.until_broken),
        )
    found |= {"seconds": round(time.monotonic() - began), "at": datetime.now(UTC).date().isoformat()}
    found["python"], found["machine"] = platform.python_version(), platform.machine()
    print(json.dumps({key: value for key, value in found.items() if key != "seeds"}, indent=1))
    if arguments.record:
        record = json.loads(arguments.record.read_text()) if arguments.record.exists() else {}
        arguments.record.write_text(json.dumps(record | {name: found}, indent=1) + "\n")
    raise SystemExit(bool(found["broken"]))


def run_all(
    first: int, number: int, keep: Path | None = None, until_broken: bool = False, minutes: float = math.inf
) -> dict[str, object]:
    """Run seeds; gives what was run, how often each kind of fault was met, and what broke, by seed."""
    met: Counter[str] = Counter()
    drawn_kinds: Counter[str] = Counter()
    broken: dict[int, str] = {}
    runs, last = 0, first
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="routelmt-chaos-") as name, server(Path(name)) as store:
        expected = clean(Path(name) / "clean")
        for seed in range(first, first + number):
            if (broken and until_broken) or time.monotonic() > until:
                break
            last = seed
            folder = Path(name) / f"seed{seed}"
            folder.mkdir()
            trial = Trial(seed, folder, store)
            drawn_kinds.update(fault.kind for fault in trial.faults)
            try:
                trial.run(expected)
            except Broken as error:
                broken[seed] = f"{', '.join(map(str, trial.faults))}: {error}"
                print(f"seed {seed}: {broken[seed]}", flush=True)
                if keep:
                    shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
            met += trial.met
            runs += trial.runs
            shutil.rmtree(folder)
    return {
        "seeds": [first, last],
        "runs": runs,
        "faults": {
            kind: {"what": what, "drawn": drawn_kinds[kind], "met": met[kind]} for kind, what in KINDS.items()
        },
        "broken": broken,
    }


@contextlib.contextmanager
def server(folder: Path) -> Iterator[S3Server]:
    (folder / "s3").mkdir()
    with s3_server(folder / "s3") as running:
        yield running


if __name__ == "__main__":
    main()
