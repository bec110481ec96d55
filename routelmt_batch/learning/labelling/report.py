"""Counts what `label` reports: qualities and gains by direction, and reasons of rows without a label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from routelmt_batch.engines.lanes import Engine
from routelmt_batch.languages import direction
from routelmt_batch.learning.labelling.label_report import LabelReport
from routelmt_batch.learning.labelling.recipe import Labelling
from routelmt_batch.rows import LARGE, QUALITY, SMALL, UNTRANSLATABLE
from routelmt_batch.stages.lengths import Sums
from routelmt_batch.stages.totals import add, totals
from routelmt_batch.store.manifest import versions

_SUMS = ("small", "large", "gain", "gain_squared")


class Counts:
    """Counts and sums of one shard's labels. Those of several shards add up."""

    def __init__(self) -> None:
        self.rows = 0
        self.unlabelled: Counter[str] = Counter()
        self.directions: dict[str, Counter[str]] = {}
        self.lengths: Sums = {}  # of the large model's translations

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
            "lengths": {name: dict(sums) for name, sums in sorted(self.lengths.items())},
        }


def report(workspace: Labelling, engine: Engine) -> LabelReport:
    """The label job's report, from its shards' reports."""
    found = totals(workspace, engine, _summable)
    directions = found.get("direction", {})
    total: Counter[str] = Counter(add(directions.values()))
    return LabelReport.of(
        {
            "name": workspace.spec.name,
            "rows": found.get("rows", 0),
            "shards": len(workspace.shards),
            "unreadable": workspace.unreadable,
            "labelled": total["labelled"],
            "unlabelled": dict(sorted(found.get("unlabelled", {}).items())),
            "cut": {route: workspace.ledger.totals(QUALITY, route).sums["cut"] for route in (SMALL, LARGE)},
            "overall": _means(total),
            "direction": {name: _means(Counter(counts)) for name, counts in sorted(directions.items())},
            "lengths": found.get("lengths", {}),
            "signature": workspace.recipe.signature().model_dump(mode="json"),
            "versions": versions(),
        }
    )


def _summable(report: Mapping[str, Any]) -> dict[str, Any]:
    return {key: report[key] for key in ("rows", "unlabelled", "direction", "lengths")}


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
