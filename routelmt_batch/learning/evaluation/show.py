"""An evaluation as tables: Markdown for a file, rich for a terminal. It formats; it computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from routelmt_batch.learning.evaluation.result import (
    Attainable,
    Bucket,
    Ceiling,
    Evaluation,
    ExpectedRandom,
    Metrics,
    RouterResult,
)
from routelmt_batch.stages.job_report import Interval
from routelmt_batch.stats.measures import METRICS

TITLES = {
    "spearman": "Spearman",
    "hit_rate": "HitRate %",
    "mean_delta": "MeanDelta",
    "oracle_share": "of oracle %",
    "severe_loss_rate": "severe %",
}
_METRIC_PLACES = {"spearman": 3}
_ON_TERMINAL = {"spearman": 2, "hit_rate": 1, "mean_delta": 2, "severe_loss_rate": 1}  # decimal digits


def ranked(evaluation: Evaluation) -> list[str]:
    """Routers, highest mean_delta first; equal or undefined ones keep the evaluation's order."""
    deltas = {name: router.overall["mean_delta"].value for name, router in evaluation.routers.items()}
    return sorted(deltas, key=lambda name: float("inf") if (delta := deltas[name]) is None else -delta)


def table(evaluation: Evaluation) -> Table:
    """One row for each router, best first, each value above its interval. The Markdown has the rest."""
    best = evaluation.best_baseline
    found = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=heading(evaluation),
        title_justify="left",
        caption="\n".join(
            [_ceiling_line(evaluation), *(f"warning: {warning}" for warning in evaluation.warnings)]
        ),
        caption_justify="left",
    )
    found.add_column("router", no_wrap=True)
    for metric in _ON_TERMINAL:
        found.add_column(TITLES[metric], justify="right")
    if evaluation.ceiling is not None:
        found.add_column("attainable %", justify="right")
    if best is not None:
        found.add_column(f"over {best}", justify="right")
    for name in ranked(evaluation):
        router = evaluation.routers[name]
        cells = [_stacked(router.overall[metric], digits) for metric, digits in _ON_TERMINAL.items()]
        if evaluation.ceiling is not None:
            shares = router.attainable_share
            cells.append(_stacked(shares.overall, 1) if shares else "-")
        if best is not None:
            against = router.against_best_baseline
            cells.append(_stacked(against.mean_delta, 2, signed=True) if against else "-")
        found.add_row(name, *cells)
    return found


def _ceiling_line(evaluation: Evaluation) -> str:
    if evaluation.ceiling is None:
        return evaluation.ceiling_note or ""
    found = evaluation.ceiling.overall
    return (
        f"ceiling: MeanDelta {_inline(found.mean_delta)} on the {found.sources:,} sources with several "
        f"references ({found.k:,} routed); random {_inline(found.random_mean_delta)}, oracle "
        f"{_inline(found.oracle_mean_delta)}"
    )


def heading(evaluation: Evaluation) -> str:
    return (
        f"{evaluation.k:,} of {evaluation.rows:,} rows routed (budget {evaluation.budget}); "
        f"{evaluation.interval_percent}% intervals of {evaluation.resamples:,} resamples, "
        f"seed {evaluation.seed}"
    )


def markdown(evaluation: Evaluation) -> str:
    """The whole evaluation as a page."""
    parts = [
        "# Evaluation",
        heading(evaluation) + f". Severe loss: gain at or below {evaluation.severe_loss_gain:g}.",
        *_warnings(evaluation),
        "## All rows",
        _metric_table(evaluation, lambda router: router.overall),
        _expectation(evaluation.expected_random),
        "## The ceiling",
        *_ceiling(evaluation),
    ]
    if evaluation.directions:
        parts += ["## Mean over directions", _metric_table(evaluation, lambda router: router.macro)]
        parts += [
            "## MeanDelta by direction",
            "Each direction alone, with a budget of its own rows.",
            _direction_table(evaluation),
        ]
    if evaluation.best_baseline is not None:
        parts += [f"## MeanDelta against {evaluation.best_baseline}", _comparison_table(evaluation)]
    parts += ["## Gains of routed rows, percent", _bucket_table(evaluation)]
    parts += ["## Quality over all budgets", _area_table(evaluation), "![Quality by budget](evaluation.svg)"]
    parts += ["## Made with", _signature(evaluation)]
    return "\n\n".join(parts) + "\n"


def bucket_name(bucket: Bucket) -> str:
    """ "≤ −5", "−5 to 0", "> 20": closed on the right."""
    over, to = (
        None if bound is None else f"{bound:g}".replace("-", "−") for bound in (bucket.over, bucket.to)
    )
    if over is None:
        return f"≤ {to}"
    return f"> {over}" if to is None else f"{over} to {to}"


def _warnings(evaluation: Evaluation) -> list[str]:
    lines = [f"- {warning}" for warning in evaluation.warnings]
    return ["**Warnings**", "\n".join(lines)] if lines else []


def _metric_table(evaluation: Evaluation, part: Callable[[RouterResult], Metrics]) -> str:
    lines = []
    for name in ranked(evaluation):
        values = part(evaluation.routers[name])
        lines.append([name, *(_inline(values[metric], _METRIC_PLACES.get(metric, 2)) for metric in METRICS)])
    return _grid(["router", *(TITLES[metric] for metric in METRICS)], lines)


def _expectation(random: ExpectedRandom) -> str:
    return (
        f"A random order is expected to have HitRate {random.hit_rate:.2f}, MeanDelta "
        f"{random.mean_delta:.2f} and {random.severe_loss_rate:.2f}% severe losses; "
        "`random`, if the evaluation added it, is one draw."
    )


def _ceiling(evaluation: Evaluation) -> list[str]:
    found = evaluation.ceiling
    if found is None:
        return [evaluation.ceiling_note or ""]
    return [
        "On the sources with several references: the gain by one reference orders, the gain by another "
        "measures, in both orders, averaged. The oracle measures with the gain that orders. Correlation is "
        "Pearson's, of the two gains.",
        _ceiling_table(found),
        "Attainable share: where each router's MeanDelta there lies between random (0%) and the ceiling "
        "(100%).",
        _share_table(evaluation, found),
    ]


def _ceiling_table(found: Ceiling) -> str:
    def line(name: str, part: Attainable) -> list[str]:
        deltas = (part.random_mean_delta, part.mean_delta, part.oracle_mean_delta)
        counts = f"{part.sources:,}", f"{part.k:,}"
        return [name, *counts, *map(_inline, deltas), _inline(part.correlation, 3)]

    parts = {"all": found.overall, **found.directions}
    titles = ["direction", "sources", "routed", "random", "ceiling", "oracle", "correlation"]
    return _grid(titles, [line(name, part) for name, part in parts.items()])


def _share_table(evaluation: Evaluation, found: Ceiling) -> str:
    lines = []
    for name in ranked(evaluation):
        if (shares := evaluation.routers[name].attainable_share) is not None:
            lines.append([name, *map(_inline, (shares.overall, *shares.directions.values()))])
    return _grid(["router", "all", *found.directions], lines)


def _direction_table(evaluation: Evaluation) -> str:
    directions = evaluation.directions
    titles = [f"{name} ({extent.k:,} of {extent.rows:,})" for name, extent in directions.items()]
    lines = [
        [name, *(_inline(evaluation.routers[name].directions[d]["mean_delta"]) for d in directions)]
        for name in ranked(evaluation)
    ]
    return _grid(["router", *titles], lines)


def _comparison_table(evaluation: Evaluation) -> str:
    lines = []
    for name in ranked(evaluation):
        against = evaluation.routers[name].against_best_baseline
        if against is not None:
            lines.append([name, _inline(against.mean_delta, signed=True), f"{against.p_value:.3g}"])
    return _grid(["router", "difference", "p (two-sided, paired bootstrap)"], lines)


def _bucket_table(evaluation: Evaluation) -> str:
    everything = evaluation.buckets_of_all_rows
    lines = [["all rows", *(_number(bucket.percent) for bucket in everything)]]
    for name in ranked(evaluation):
        buckets = evaluation.routers[name].buckets
        lines.append([name, *(_number(bucket.percent) for bucket in buckets)])
    return _grid(["gain", *(bucket_name(bucket) for bucket in everything)], lines)


def _area_table(evaluation: Evaluation) -> str:
    lines = []
    for name in ranked(evaluation):
        area = evaluation.routers[name].area
        lines.append(
            [
                name,
                _number(area["value"]),
                _number(area["of_oracle-gain"], 3),
                _number(area["of_oracle-quality"], 3),
            ]
        )
    return _grid(["router", "area", "0 random, 1 gain oracle", "0 random, 1 quality oracle"], lines)


def _signature(evaluation: Evaluation) -> str:
    stated = {**evaluation.signature, **evaluation.versions}
    return "\n".join(f"- {name}: {value}" for name, value in stated.items())


def _grid(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [titles, ["---", *("---:" for _ in titles[1:])], *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows)


def _number(value: float | None, digits: int = 2, signed: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if signed else ''},.{digits}f}"


def _interval(value: Interval, digits: int, signed: bool = False) -> str:
    return f"[{_number(value.low, digits, signed)}, {_number(value.high, digits, signed)}]"


def _inline(value: Interval, digits: int = 2, signed: bool = False) -> str:
    if value.value is None:
        return "-"
    return f"{_number(value.value, digits, signed)} {_interval(value, digits, signed)}"


def _stacked(value: Interval, digits: int, signed: bool = False) -> str:
    return _inline(value, digits, signed).replace(" [", "\n[")
