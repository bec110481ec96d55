"""The rows of a shard that the page shows.

They are chosen from a stream of numbers, and only then are their texts read. So memory holds one batch and
the rows shown.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.page.shard_table import FAILURES
from routelmt_batch.rows import AUDIT_TRANSLATIONS, LARGE, OK, OUTPUT_NAMES, SMALL, TRANSLATIONS
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.stages.gains import gain_of
from routelmt_batch.store.ledger import Ledger

_MOST_CHARS = 2000
_FAILURES = pa.array(FAILURES)


def excerpt(job: FinishedJob, ledger: Ledger, shard: str, rows: int) -> dict[str, Any]:
    """`gained`, `cut` and `failed`: at most `rows` row numbers each; `rows`: the contents of these rows."""
    chosen = _choose(job, shard, rows, job.report.threshold)
    wanted = np.unique(np.concatenate(list(chosen.values()))).astype(np.int64)
    return {
        **{name: numbers.tolist() for name, numbers in chosen.items()},
        "rows": _read(job, ledger, shard, wanted),
    }


class _Lowest:
    """The row numbers with the lowest keys of a stream; ties are ordered by row."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.keys = np.zeros(0)
        self.rows = np.zeros(0, np.int64)

    def add(self, keys: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> None:
        keys, rows = np.concatenate([self.keys, keys]), np.concatenate([self.rows, rows])
        order = np.lexsort((rows, keys))[: self.most]
        self.keys, self.rows = keys[order], rows[order]


def _choose(
    job: FinishedJob, shard: str, rows: int, threshold: float | None
) -> dict[str, npt.NDArray[np.int64]]:
    gained, cut, failed = (_Lowest(rows) for _ in range(3))
    for first, batch in job.batches(shard, ["predicted_gain", "status"]):
        number = np.arange(first, first + batch.num_rows)
        gains = gain_of(batch, "predicted_gain").astype(np.float64)
        known = np.isfinite(gains)
        gained.add(-gains[known], number[known])
        if threshold is not None:
            cut.add(np.abs(gains[known] - threshold), number[known])
        bad = pc.is_in(batch["status"], _FAILURES).to_numpy(zero_copy_only=False)
        failed.add(np.zeros(int(bad.sum())), number[bad])
    return {"gained": gained.rows, "cut": cut.rows, "failed": failed.rows}


def _read(
    job: FinishedJob, ledger: Ledger, shard: str, wanted: npt.NDArray[np.int64]
) -> dict[int, dict[str, Any]]:
    """Each wanted row by its number: source, each model's translation, route and status."""
    languages = job.languages()
    columns = [job.spec.input.columns.source, *languages.values(), *OUTPUT_NAMES]
    by_model = _translations(ledger, shard, wanted)
    contents: dict[int, dict[str, Any]] = {}
    for first, batch in job.batches(shard, columns, wanted):
        here = wanted[(wanted >= first) & (wanted < first + batch.num_rows)]
        for number, row in zip(here.tolist(), batch.take(pa.array(here - first)).to_pylist(), strict=True):
            texts = {SMALL: None, LARGE: None, row["route"]: row["translation"]} | by_model.get(number, {})
            contents[number] = {
                "source": clip(row[job.spec.input.columns.source]),
                **{model: clip(texts[model]) for model in (SMALL, LARGE)},
                **{key: getattr(job.spec.input, key) for key in ("source_lang", "target_lang")},
                **{key: row[column] for key, column in languages.items()},
                "gain": row["predicted_gain"],
                **{key: row[key] for key in ("planned_route", "route", "status", "reason")},
            }
    return contents


def _translations(ledger: Ledger, shard: str, wanted: npt.NDArray[np.int64]) -> dict[int, dict[str, str]]:
    """Each model's committed translations of the wanted rows, without those in parts that were removed."""
    numbers = wanted.tolist()
    entries = {
        entry.part: entry  # in the ledger's order, each once
        for stage in (TRANSLATIONS, AUDIT_TRANSLATIONS)
        for number in numbers
        for entry in ledger.overlapping(stage, shard, number, number + 1)
    }
    texts: dict[int, dict[str, str]] = {}
    for entry in entries.values():
        wanted = (pc.field("shard") == shard) & pc.field("row").isin(numbers) & (pc.field("status") == OK)
        try:
            table = ledger.read(entry).filter(wanted)
        except FileNotFoundError:  # `clean` may have removed the work files of a finished job
            continue
        for line in table.select(["row", "route", "translation"]).to_pylist():
            texts.setdefault(line["row"], {})[line["route"]] = line["translation"]
    return texts


def clip(text: str | None) -> str | None:
    """Shorten a text to what the page shows."""
    if text is None or len(text) <= _MOST_CHARS:
        return text
    return f"{text[:_MOST_CHARS]} … ({len(text) - _MOST_CHARS:,} more characters)"


def choose_shards(lines: Iterable[dict[str, Any]], most: int) -> list[str]:
    """The shards whose rows are shown: those that stand out first, then those with failures, then by name."""
    order = sorted(lines, key=lambda line: (not line["marks"], not line["failures"], line["name"].encode()))
    return [line["name"] for line in order if line["rows"]][:most]
