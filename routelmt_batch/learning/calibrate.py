"""Calibrate: the score from which on a wanted fraction of rows goes to the large model.

A job with such a threshold needs no global selection. How far the fraction that it realises may lie
from the wanted one follows from order statistics: of M new rows like the n held-out ones, the number
that scores at least the k-th highest is beta-binomial (M, k, n - k + 1) (David and Nagaraja, Order
Statistics, 3rd ed., section 7.3; exact for scores without ties).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom

from routelmt_batch.atomic import write_json
from routelmt_batch.errors import InputError, UsageError
from routelmt_batch.job import OpenEngine
from routelmt_batch.learning.scoring import router_spec, score_tables
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import CARD, Calibration, Threshold, raw_card, read_card
from routelmt_batch.stages.allocate import places
from routelmt_batch.workspace import Folder

QUANTILES = np.linspace(0, 1, 101)
_FEWEST_ROWS = 20


def calibrate(
    router: str,
    tables: Sequence[str],
    fractions: Sequence[Decimal],
    traffic_rows: int,
    bars: Bars,
    open_engine: OpenEngine,
) -> Calibration:
    """Score held-out tables and store thresholds in the router folder's card.

    Args:
        router: a router folder. The tables need no labels, only text and languages.
        traffic_rows: rows of a job to come, for the interval of the fraction it will realise.

    Raises:
        UsageError: no router folder, too few rows, or a fraction of less than one row.
    """
    folder = Path(router)
    if not folder.is_dir():
        raise UsageError(f"{router}: not a folder; thresholds are stored beside a router's weights")
    card = read_card(router)
    work = Folder(folder / "_calibrate")
    work.logs.mkdir(parents=True, exist_ok=True)
    with open_engine(work) as engine:
        found = score_tables(
            tables, router_spec(card.kind, router), work.work / "scores", None, engine, bars, "held out"
        )
    calibration = thresholds(found.scores[~np.isnan(found.scores)], fractions, traffic_rows)
    write_json(folder / CARD, raw_card(router) | {"calibration": calibration.model_dump()}, "card")
    shutil.rmtree(work.root)
    return calibration


def thresholds(
    scores: npt.NDArray[np.float32], fractions: Sequence[Decimal], traffic_rows: int
) -> Calibration:
    """Thresholds for the fractions, each with the 95% interval of what new traffic will realise.

    Raises:
        InputError: fewer than 20 scores.
        UsageError: a fraction whose floor(p n) is no row.
    """
    if len(scores) < _FEWEST_ROWS:
        raise InputError(f"{len(scores)} rows with a score: a threshold needs {_FEWEST_ROWS} at least")
    highest = np.sort(scores)[::-1]
    found = {str(fraction): _threshold(highest, fraction, traffic_rows) for fraction in fractions}
    quantiles = np.quantile(scores.astype(np.float64), QUANTILES)
    return Calibration(
        rows=len(scores),
        traffic_rows=traffic_rows,
        thresholds=found,
        quantiles=tuple(float(value) for value in quantiles),
    )


def _threshold(highest: npt.NDArray[np.float32], fraction: Decimal, traffic_rows: int) -> Threshold:
    k = places(fraction, len(highest))
    if not k:
        raise UsageError(f"--fraction {fraction}: less than one row of {len(highest)}; give more rows")
    value = float(highest[k - 1])
    # Ties at the threshold all go: the fraction is that of every row that reaches it.
    reached = int((highest >= highest[k - 1]).sum())
    realised = betabinom(traffic_rows, reached, len(highest) - reached + 1)
    low, high = (float(bound) / traffic_rows for bound in realised.interval(0.95))
    return Threshold(value=value, low=low, high=high)
