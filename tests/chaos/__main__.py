"""Random faults, seed after seed: `python -m tests.chaos --seeds 200` runs them and writes a record."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.chaos import real
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
    seeds = range(arguments.first, arguments.first + (arguments.real or arguments.seeds))
    name = "real engines" if arguments.real else "made-up engine"
    until, broken = time.monotonic() + 60 * arguments.minutes, 0
    for found in real.run_all(seeds) if arguments.real else run_all(seeds, arguments.keep):
        broken += "broken" in found
        print(json.dumps(found), flush=True)
        if arguments.record:
            keep(arguments.record, name, found)
        if (broken and arguments.until_broken) or time.monotonic() > until:
            break
    raise SystemExit(bool(broken))


def keep(record: Path, name: str, found: dict[str, object]) -> None:
    """Put a seed's outcome into a record, in the place of an earlier one."""
    whole = json.loads(record.read_text()) if record.exists() else {}
    seeds = {one["seed"]: one for one in whole.get(name, [])} | {found["seed"]: found}
    whole[name] = sorted(seeds.values(), key=lambda one: one["seed"])
    lines = (f' "{key}": [\n  ' + ",\n  ".join(map(json.dumps, each)) + "\n ]" for key, each in whole.items())
    record.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def run_all(seeds: Iterable[int], kept: Path | None = None) -> Iterator[dict[str, object]]:
    """Run seeds; gives of each its faults, which of them changed their run, and why it is `broken`, if it is."""
    with tempfile.TemporaryDirectory(prefix="routelmt-chaos-") as name, server(Path(name)) as store:
        expected = clean(Path(name) / "clean")
        for seed in seeds:
            folder = Path(name) / f"seed{seed}"
            folder.mkdir()
            trial = Trial(seed, folder, store)
            found: dict[str, object] = {"seed": seed, "faults": [fault.kind for fault in trial.faults]}
            try:
                trial.run(expected)
            except Broken as error:
                found["broken"] = f"{', '.join(map(str, trial.faults))}: {error}"
                if kept:
                    shutil.copytree(folder, kept / folder.name, dirs_exist_ok=True)
            yield found | {"met": trial.met, "runs": trial.runs}
            shutil.rmtree(folder)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[S3Server]:
    (folder / "s3").mkdir()
    with s3_server(folder / "s3") as running:
        yield running


if __name__ == "__main__":
    main()
