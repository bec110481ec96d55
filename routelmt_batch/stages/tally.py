"""Counts of output rows: by status, reason, route and direction; gains and tokens. Sums merge."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.codes import Codes
from routelmt_batch.languages import direction
from routelmt_batch.rows import EMPTY, EMPTY_OUTPUT, LARGE, NULL, SMALL, TRUNCATED
from routelmt_batch.stages.lengths import Sums, add_lengths

# Fixed bins, so that histograms of shards and of jobs add up: 2 wide on the x100 scale, open ends.
EDGES = np.arange(-100.0, 101.0, 2.0)
DECILES = tuple(range(1, 10))
_COUNTERS = ("status", "reason", "planned_route", "route")
_NO_TEXT = (EMPTY, NULL, EMPTY_OUTPUT)
_SUMS = (
    "rows_with_gain",
    "predicted_gain_bought",
    "tokens",
    "lengths",
    "folded_rows",
    "used_calls",
    "reused_calls",
)


class Tally:
    """Counts of one shard. Only its gains take memory that grows with the rows."""

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.rows = 0
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTERS}
        self.directions: dict[str, Counter[str]] = {}
        self.checks: Counter[str] = Counter()
        self.codes = Codes()
        self.folded_rows = 0
        self.used_calls: Counter[str] = Counter()
        self.reused_calls: Counter[str] = Counter()
        self.tokens = {route: Counter({"in": 0, "out": 0}) for route in (SMALL, LARGE)}
        self.lengths: Sums = {}  # of the large model's translations
        self._gains: list[npt.NDArray[np.float32]] = []
        self._planned: list[npt.NDArray[np.bool_]] = []
        self.bought: list[float] = []

    def add(
        self,
        columns: Mapping[str, pa.Array],
        prompt_tokens: pa.Array,
        doubts: Iterable[Iterable[str] | None],
        folded: npt.NDArray[np.bool_],
        source_lang: pa.Array,
        target_lang: pa.Array,
    ) -> None:
        """Count some rows: output columns, the tokens that a model of this job read for them, why
        translations are doubtful, which rows have the output of another row's call, language codes as they
        are written."""
        doubtful = []
        for slugs in doubts:
            self.checks.update(slugs or ())
            doubtful.append(bool(slugs))
        names = [*_COUNTERS, "source_lang", "target_lang", "doubtful", "folded", "made"]
        made = pc.is_valid(prompt_tokens)  # by a model of this job
        table = pa.table(
            {name: columns[name] for name in _COUNTERS}
            | {"source_lang": source_lang, "target_lang": target_lang}
            | {"in": prompt_tokens, "out": pc.if_else(made, columns["output_tokens"], None)}
            | {"doubtful": pa.array(doubtful), "folded": pa.array(folded), "made": made}
        )
        for group in (
            table.group_by(names).aggregate([([], "count_all"), ("in", "sum"), ("out", "sum")]).to_pylist()
        ):
            self._count(group)
        names = ["source_lang", "target_lang", "in", "out"]
        by_large = pc.and_(table["made"], pc.fill_null(pc.equal(table["route"], LARGE), False))
        large = table.filter(by_large).select(names)
        add_lengths(self.lengths, large.rename_columns([*names[:2], "prompt_tokens", "output_tokens"]))
        gains = np.asarray(columns["predicted_gain"].to_numpy(zero_copy_only=False), np.float32)
        planned, route = (
            np.asarray(pc.fill_null(pc.equal(columns[name], LARGE), False).to_numpy(zero_copy_only=False))
            for name in ("planned_route", "route")
        )
        self._gains.append(gains)
        self._planned.append(planned)
        self.bought.append(float(gains[route & np.isfinite(gains)].sum(dtype=np.float64)))

    def _count(self, group: Mapping[str, Any]) -> None:
        rows = group["count_all"]
        self.rows += rows
        for name in _COUNTERS:
            if group[name] is not None:
                self.counts[name][group[name]] += rows
        if group["folded"]:
            self.folded_rows += rows
        elif group["route"] is not None:
            self.used_calls[group["route"]] += rows
            self.reused_calls[group["route"]] += rows * (not group["made"])
            self.tokens[group["route"]].update({"in": group["in_sum"] or 0, "out": group["out_sum"] or 0})
        self.codes.add(group["source_lang"], group["target_lang"], rows)
        counts = self.directions.setdefault(
            direction(group["source_lang"], group["target_lang"]),
            Counter(planned_large=0, large=0),
        )
        counts.update({"rows": rows, group["status"]: rows})
        reason = group["reason"]
        holds = {
            "truncated": reason == TRUNCATED,
            "empty": reason in _NO_TEXT,
            "doubtful": group["doubtful"],
            "folded": group["folded"],
            "reused": group["route"] is not None and not (group["folded"] or group["made"]),
        }
        counts.update({name: rows for name, true in holds.items() if true})
        counts["planned_large"] += rows * (group["planned_route"] == LARGE)
        counts["large"] += rows * (group["route"] == LARGE)

    def report(self) -> dict[str, Any]:
        gains = np.concatenate(self._gains) if self._gains else np.zeros(0, np.float32)
        planned = np.concatenate(self._planned) if self._planned else np.zeros(0, bool)
        with_gain = int((~np.isnan(gains)).sum())
        return {
            "rows": self.rows,
            **{name: dict(sorted(counter.items())) for name, counter in self.counts.items()},
            "direction": {name: dict(sorted(c.items())) for name, c in sorted(self.directions.items())},
            "checks": dict(sorted(self.checks.items())),
            "codes": self.codes.report(),
            "threshold": self.threshold,
            "rows_with_gain": with_gain,
            "fraction": fractions(self.counts, with_gain),
            "gain": {"all": _distribution(gains), "routed": _distribution(gains[planned])},
            "predicted_gain_bought": math.fsum(self.bought),
            "tokens": {route: dict(counter) for route, counter in self.tokens.items()},
            "folded_rows": self.folded_rows,
            "used_calls": dict(sorted(self.used_calls.items())),
            "reused_calls": dict(sorted(self.reused_calls.items())),
            "lengths": {name: dict(sums) for name, sums in sorted(self.lengths.items())},
        }


def fractions(counts: Mapping[str, Mapping[str, int]], with_gain: int) -> dict[str, float | None]:
    """Shares of the rows with a gain: planned for the large model, and translated by it."""
    return {
        key: counts[name].get(LARGE, 0) / with_gain if with_gain else None
        for key, name in (("planned", "planned_route"), ("actual", "route"))
    }


def _distribution(gains: npt.NDArray[np.float32]) -> dict[str, Any]:
    present = gains[np.isfinite(gains)].astype(np.float64)
    deciles = (
        np.quantile(present, np.array(DECILES) / 10, method="inverted_cdf").tolist() if len(present) else []
    )
    return {
        "rows": int((~np.isnan(gains)).sum()),
        "infinite": int(np.isinf(gains).sum()),
        "sum": math.fsum(present),
        "mean": math.fsum(present) / len(present) if len(present) else None,
        "min": float(present.min()) if len(present) else None,
        "max": float(present.max()) if len(present) else None,
        "deciles": deciles,
        "histogram": histogram(present),
    }


def histogram(gains: npt.NDArray[np.float64]) -> dict[str, list[float]]:
    """Counts below the first edge, between edges, and from the last edge on."""
    bins = np.searchsorted(EDGES, gains, side="right")
    return {
        "edges": EDGES.tolist(),
        "counts": np.bincount(bins, minlength=len(EDGES) + 1).tolist(),
    }


def summable(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a shard's report adds up over the job, for totals.totals.

    Deciles cannot be summed; the job's are selected exactly from the scores.
    """
    gains = {
        name: {key: dist[key] for key in ("rows", "infinite", "sum")}
        | {min: dist["min"], max: dist["max"]}
        | {"counts": dict(enumerate(dist["histogram"]["counts"]))}
        for name, dist in report["gain"].items()
    }
    return {key: report[key] for key in ("rows", *_COUNTERS, "checks", "codes", "direction", *_SUMS)} | {
        "gain": gains
    }
