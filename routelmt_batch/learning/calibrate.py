"""Calibrates a router: finds the lowest score with which a wanted fraction of rows goes to the large model.

In a job with such a threshold a row's route depends only on its own score. HeldOut gives the interval of
the fraction that a job will realise.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import numpy.typing as npt

from routelmt_batch.errors import InputError, UsageError
from routelmt_batch.files.uris import locate
from routelmt_batch.files.write import remove_folder, write_json
from routelmt_batch.job.flow import OpenEngine
from routelmt_batch.learning.labels import find
from routelmt_batch.learning.scoring import router_spec, score_tables
from routelmt_batch.progress import Bars
from routelmt_batch.routers.calibration import HeldOut
from routelmt_batch.routers.card import CARD, Calibration, Threshold, raw_card, read_card
from routelmt_batch.stats.selection import places
from routelmt_batch.store.folder import WORK, Folder

QUANTILES = np.linspace(0, 1, 101)
_FEWEST_ROWS = 20


def calibrate(
    router: str,
    tables: Sequence[str],
    fractions: Sequence[Decimal],
    traffic_rows: int,
    bars: Bars,
    open_engine: OpenEngine,
    dtype: str = "auto",
) -> Calibration:
    """Score held-out tables and store thresholds in the router folder's card.

    If it was stopped, the same command continues from the scored rows. A refused command leaves no files.

    Args:
        router: a router folder, on a disk or in an object store. The tables need no labels, only text and
            languages.
        traffic_rows: rows of a future job, for the interval of the fraction that it will realise.

    Raises:
        UsageError: no router folder, too few rows, or a fraction of less than one row.
    """
    folder = locate(router)
    if not folder.is_folder():
        raise UsageError(f"{router}: not a folder; give a router folder, where thresholds are stored")
    pool = router_spec(read_card(router).kind, router, dtype=dtype)
    _check_rows(sum(table.rows() for table in find(tables)), fractions)
    work = Folder(folder / "_calibrate")
    scores = work.root / WORK / "scores"
    try:
        with open_engine(work) as engine:
            scored = score_tables(tables, pool, scores, None, engine, bars, "held out")
        unscored = np.isnan(scored.scores)
        calibration = thresholds(scored.scores[~unscored], fractions, traffic_rows)
    except UsageError:
        if not Folder(scores).ledger().log.holder:  # else another calibration uses them
            remove_folder(work.root)
        raise
    for warning in scored.router.doubts(router, scored.directions):
        bars.warn(warning)
    if missing := int(unscored.sum()):
        bars.warn(f"{missing:,} of {len(unscored):,} rows have no score; thresholds come from the others")
    write_json(folder / CARD, raw_card(router) | {"calibration": calibration.model_dump()}, "card")
    remove_folder(work.root)
    return calibration


def thresholds(
    scores: npt.NDArray[np.float32], fractions: Sequence[Decimal], traffic_rows: int
) -> Calibration:
    """Thresholds for the fractions, each with the 95% interval of the fraction that new rows will realise.

    Raises:
        InputError: fewer than 20 scores.
        UsageError: a fraction p with floor(p n) = 0.
    """
    _check_rows(len(scores), fractions, " with a score")
    highest = np.sort(scores)[::-1]
    by_fraction = {str(fraction): _threshold(highest, fraction, traffic_rows) for fraction in fractions}
    quantiles = np.quantile(scores.astype(np.float64), QUANTILES)
    return Calibration(
        rows=len(scores),
        traffic_rows=traffic_rows,
        thresholds=by_fraction,
        quantiles=tuple(float(value) for value in quantiles),
    )


def _check_rows(rows: int, fractions: Sequence[Decimal], which: str = "") -> None:
    """Raises what `thresholds` raises."""
    if rows < _FEWEST_ROWS:
        raise InputError(f"{rows} rows{which}: a threshold needs at least {_FEWEST_ROWS}; give more rows")
    for fraction in fractions:
        if not places(fraction, rows):
            raise UsageError(f"--fraction {fraction}: less than one row of {rows}{which}; give more rows")


def _threshold(highest: npt.NDArray[np.float32], fraction: Decimal, traffic_rows: int) -> Threshold:
    lowest = highest[places(fraction, len(highest)) - 1]
    # Rows that tie at the threshold all go to the large model, so all of them count.
    reached = int((highest >= lowest).sum())
    low, high = HeldOut(len(highest), reached).interval(traffic_rows)
    return Threshold(value=float(lowest), reached=reached, low=low, high=high)
