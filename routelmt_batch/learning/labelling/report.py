"""Counts what `label` reports: qualities and gains by direction, and reasons of rows without a label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines.lanes import Engine
from routelmt_batch.languages import direction
from routelmt_batch.learning.gains import GAIN_BY_REFERENCE, halves
from routelmt_batch.learning.labelling.label_report import LabelReport
from routelmt_batch.learning.labelling.recipe import Labelling
from routelmt_batch.rows import LARGE, QUALITY, SMALL, UNTRANSLATABLE
from routelmt_batch.stages.lengths import Sums
from routelmt_batch.stages.totals import add, totals
from routelmt_batch.store.manifest import versions

_SUMS = ("small", "large", "gain", "gain_squared")
_SUMS_OF_HALVES = ("several", "first", "second", "first_squared", "second_squared", "product")
_FEWEST = 4  # rows of an interval by Fisher's transformation
_SAME = 1e-12  # product of two variances: smaller ones are rounding errors


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
        twice = _halves(columns[GAIN_BY_REFERENCE])
        for row, (reason, codes, (small, large)) in enumerate(zip(why, languages, qualities, strict=True)):
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
            if row in twice:
                a, b = twice[row]
                counts.update(dict(zip(_SUMS_OF_HALVES, (1, a, b, a * a, b * b, a * b), strict=True)))

    def report(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "unlabelled": dict(sorted(self.unlabelled.items())),
            "direction": {name: dict(counts) for name, counts in sorted(self.directions.items())},
            "lengths": {name: dict(sums) for name, sums in sorted(self.lengths.items())},
        }


def _halves(by_reference: pa.Array) -> dict[int, tuple[float, float]]:
    """The two gains of each row with several references; see gains.halves."""
    rows = np.asarray(pc.list_parent_indices(by_reference).to_numpy(), np.int64)
    found = halves(pc.list_flatten(by_reference).to_numpy(), rows)
    pairs = zip(found.first.tolist(), found.second.tolist(), strict=True)
    return dict(zip(found.of.tolist(), pairs, strict=True))


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
        **({"reliability": _reliability(counts)} if counts.get("several") else {}),
    }


def _reliability(counts: Mapping[str, float]) -> dict[str, Any]:
    """Pearson's correlation of the two gains of rows with several references.

    The 95% interval is that of Fisher's transformation, atanh(r) ± 1.96 / √(n - 3): sums over shards do not
    allow a bootstrap.
    """
    n = int(counts["several"])
    first, second, first_squared, second_squared, product = (counts[name] / n for name in _SUMS_OF_HALVES[1:])
    spread = (first_squared - first * first) * (second_squared - second * second)
    found: dict[str, Any] = {"rows": n, "correlation": None, "low": None, "high": None}
    if n < _FEWEST or not spread > _SAME:
        return found
    correlation = float(np.clip((product - first * second) / math.sqrt(spread), -1, 1))
    found["correlation"] = correlation
    if abs(correlation) < 1:
        middle, width = math.atanh(correlation), 1.96 / math.sqrt(n - 3)
        found |= {"low": math.tanh(middle - width), "high": math.tanh(middle + width)}
    return found
