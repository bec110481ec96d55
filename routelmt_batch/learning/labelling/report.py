"""Counts what `label` reports: qualities and gains by direction, and reasons of rows without a label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from routelmt_batch.learning.labelling.label_report import LabelReport
from routelmt_batch.learning.labelling.recipe import Labelling
from routelmt_batch.rows import LARGE, QUALITY, SMALL, UNTRANSLATABLE
from routelmt_batch.stages.tally import direction
from routelmt_batch.store.folder import read_json
from routelmt_batch.store.manifest import versions

_SUMS = ("small", "large", "gain", "gain_squared")


class Counts:
    """Counts and sums of one shard's labels. Those of several shards add up."""

    def __init__(self) -> None:
        self.rows = 0
        self.unlabelled: Counter[str] = Counter()
        self.directions: dict[str, Counter[str]] = {}

    def add(
        self,
        columns: Mapping[str, pa.Array],
        reasons: Sequence[pa.Array],
        source_lang: pa.Array,
        target_lang: pa.Array,
    ) -> None:
        """Count some rows: label columns, reasons of the small and the large model's attempts."""
        self.rows += len(source_lang)
        why = zip(*(reason.to_pylist() for reason in reasons), strict=True)
        languages = zip(source_lang.to_pylist(), target_lang.to_pylist(), strict=True)
        qualities = zip(
            *(columns[f"quality_{route}"].to_pylist() for route in ("small", "large")), strict=True
        )
        for reason, codes, (small, large) in zip(why, languages, qualities, strict=True):
            counts = self.directions.setdefault(direction(*codes), Counter(rows=0, labelled=0))
            counts["rows"] += 1
            if small is None or large is None:
                # A reason that holds for both models stands alone. A failure of one model names the model.
                name, why_not = ("small", reason[0]) if small is None else ("large", reason[1])
                known = why_not in UNTRANSLATABLE and why_not
                self.unlabelled[known or f"{name}_{why_not}"] += 1
                continue
            gain = large - small
            sums = dict(zip(_SUMS, (small, large, gain, gain * gain), strict=True))
            counts.update({"labelled": 1, **sums})

    def report(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "unlabelled": dict(sorted(self.unlabelled.items())),
            "direction": {name: dict(counts) for name, counts in sorted(self.directions.items())},
        }


def report(workspace: Labelling) -> LabelReport:
    """The label job's report, from its shards' reports."""
    unlabelled: Counter[str] = Counter()
    directions: dict[str, Counter[str]] = {}
    rows = 0
    for shard in workspace.shards:
        shard_report = read_json(workspace.folder.report(shard.name))
        rows += shard_report["rows"]
        unlabelled.update(shard_report["unlabelled"])
        for name, counts in shard_report["direction"].items():
            directions.setdefault(name, Counter()).update(counts)
    total: Counter[str] = Counter()
    for counts in directions.values():
        total.update(counts)
    return LabelReport.of(
        {
            "name": workspace.spec.name,
            "rows": rows,
            "shards": len(workspace.shards),
            "unreadable": workspace.unreadable,
            "labelled": total["labelled"],
            "unlabelled": dict(sorted(unlabelled.items())),
            "cut": {route: workspace.ledger.totals(QUALITY, route).sums["cut"] for route in (SMALL, LARGE)},
            "overall": _means(total),
            "direction": {name: _means(counts) for name, counts in sorted(directions.items())},
            "signature": workspace.recipe.signature().model_dump(mode="json"),
            "versions": versions(),
        }
    )


def _means(counts: Mapping[str, float]) -> dict[str, Any]:
    n = counts["labelled"]
    means: dict[str, Any] = {"rows": counts["rows"], "labelled": n}
    if not n:
        return means
    small, large, gain, squared = (counts[name] / n for name in _SUMS)
    deviation = math.sqrt(max(0.0, squared - gain * gain))
    return means | {
        "quality_small": small,
        "quality_large": large,
        "gain": gain,
        "gain_standard_deviation": float(np.round(deviation, 6)),
    }
