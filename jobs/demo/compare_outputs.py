"""Mean sentence chrF of finished jobs over the same rows with references, and how far each is from the first.

    python jobs/demo/compare_outputs.py runs/demo runs/demo-guarded

Rows without a reference are left out; a row without a translation scores 0. Differences are paired, with a
95% bootstrap interval.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from routelmt_batch.metrics.chrf import sentence_chrf
from routelmt_batch.stats.measures import Floats, Integers
from routelmt_batch.stats.resampling import bootstrap, compare


def quality(output: Path) -> tuple[list[str], Floats, int]:
    """References, chrF against each, and how many rows the large model translated."""
    parts = sorted((output / "data").rglob("*.parquet"))
    rows = [row for part in parts for row in pq.read_table(part).to_pylist()]
    known = [row for row in rows if (row["reference"] or "").strip()]
    references = [row["reference"] for row in known]
    chrf = sentence_chrf([row["translation"] or "" for row in known], references)
    return references, np.array(chrf), sum(row["route"] == "large" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("outputs", nargs="+", type=Path)
    outputs = parser.parse_args().outputs
    references, first, _ = quality(outputs[0])
    for output in outputs:
        theirs, chrf, large = quality(output)
        if theirs != references:
            raise SystemExit(f"{output}: other rows than the first output's: compare jobs on one corpus")

        def difference(weights: Integers, chrf: Floats = chrf) -> Floats:
            return np.array([np.average(chrf - first, weights=weights)])

        found = compare(bootstrap(len(first), difference, 2000, seed=0)[:, 0])
        print(
            f"{output}: {len(first):,} rows, {large:,} by large, mean chrF {chrf.mean():.2f}, "
            f"{(chrf - first).mean():+.2f} ({found.low:+.2f} to {found.high:+.2f})"
        )


if __name__ == "__main__":
    main()
