"""What the routing is worth on the demo: `make demo-quality`.

Translates every demo row with both models (two jobs, at budgets 0 and 1) and compares, on the rows that
have a reference, the job's routing at its own budget with other ways to spend the same budget.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from routelmt_batch import job
from routelmt_batch.metrics.chrf import sentence_chrf, signature
from routelmt_batch.progress import Bars, stderr_console
from routelmt_batch.spec_file import load
from routelmt_batch.stages.allocate import places
from routelmt_batch.workspace import Folder

SPEC = Path(__file__).with_name("job.yaml")
OUTPUT = Path("runs/demo-quality")
RESAMPLES = 5000
SEED = 2026


def translated(fraction: str) -> pa.Table:
    """Every demo row translated at a budget: 0 is all small, 1 is all large."""
    spec = load(SPEC, budget_fraction=fraction, output_uri=str(OUTPUT / f"budget-{fraction}"))
    options = job.Options()
    job.run(spec, options, Bars(stderr_console()), partial(job.vllm_engine, options=options))
    folder = Folder(Path(spec.output.uri))
    rows = []
    for shard in sorted((folder.root / "data").rglob("*.parquet"), key=lambda path: str(path).encode()):
        columns = ["source", "reference", "translation", "predicted_gain", "status"]
        rows.append(pq.read_table(shard, columns=columns))
    return pa.concat_tables(rows)


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """Mask of the `count` highest scores; ties by place."""
    mask = np.zeros(len(scores), bool)
    mask[np.argsort(-scores, kind="stable")[:count]] = True
    return mask


def main() -> None:
    spec = load(SPEC)
    small, large = translated("0").to_pydict(), translated("1").to_pydict()
    gain = np.array(small["predicted_gain"], float)
    has_gain = ~np.isnan(gain)
    routed = top(np.where(has_gain, gain, -np.inf), places(spec.budget.fraction, int(has_gain.sum())))
    known = np.array(
        [
            reference is not None and status == "ok"
            for reference, status in zip(small["reference"], small["status"], strict=True)
        ]
    )
    references = np.array(small["reference"], object)[known]
    quality = {
        name: np.array(sentence_chrf(np.array(table["translation"], object)[known], references))
        for name, table in (("small", small), ("large", large))
    }
    difference = quality["large"] - quality["small"]
    rows, budget = int(known.sum()), int(routed[known].sum())
    length = np.array([len(text) for text in np.array(small["source"], object)[known]], float)
    shares = {
        "all small": np.zeros(rows),
        "all large": np.ones(rows),
        "the job's routing": routed[known].astype(float),
        "random (expected)": np.full(rows, budget / rows),
        "length, longer first": top(length, budget).astype(float),
        "oracle (true gain)": top(difference, budget).astype(float),
    }
    table = Table("translations by", "rows to large", "chrF", "95% interval", "over random", "95% interval")
    random = quality["small"] + shares["random (expected)"] * difference
    for name, share in shares.items():
        outcome = quality["small"] + share * difference
        cells = [name, f"{share.sum():.0f} of {rows}", f"{outcome.mean():.2f}", interval(outcome)]
        same_budget = name not in ("all small", "all large", "random (expected)")
        over = [f"{(outcome - random).mean():+.2f}", interval(outcome - random)] if same_budget else ["", ""]
        table.add_row(*cells, *over)
    console = Console(width=100)
    console.print(table)
    console.print(f"{signature()}; mean over rows; {RESAMPLES} bootstrap resamples of rows, seed {SEED}.")


def interval(values: np.ndarray) -> str:
    if np.ptp(values) == 0:
        return f"{values[0]:.2f}"
    found = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(SEED)
    ).confidence_interval
    return f"{found.low:.2f} to {found.high:.2f}"


if __name__ == "__main__":
    main()
