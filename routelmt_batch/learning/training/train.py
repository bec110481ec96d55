"""Training a router, in order: check, split, tokenize, fit, measure, publish.

It knows tables, the folder and the report. The workers train the model; see `trainer`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from routelmt_batch.errors import ModelError
from routelmt_batch.files.write import write_json, write_text
from routelmt_batch.interrupts import stop_on_signals
from routelmt_batch.job.flow import Options, Outcome
from routelmt_batch.learning.labels import Signature
from routelmt_batch.learning.training import examples, model_card
from routelmt_batch.learning.training.folder import (
    TrainingFolder,
    begin,
    check_output,
    check_same,
    fingerprint,
)
from routelmt_batch.learning.training.lock import lock
from routelmt_batch.learning.training.regression import measure
from routelmt_batch.learning.training.report import HeldOut, Prepared, Trained, TrainReport
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.learning.training.split import TRAIN
from routelmt_batch.learning.training.tables import check_makers, find_tables, read_rows
from routelmt_batch.progress import Bars
from routelmt_batch.stats.measures import FEW_ROWS
from routelmt_batch.store import checkpoints


def train(spec: TrainSpec, options: Options, bars: Bars) -> Outcome[TrainReport]:
    """Train a router, from its start or from where an earlier run stopped. It reads only `address` and
    `verbose` of the options.

    Raises:
        UsageError: a table, the base model or the output folder must change first; see errors.
        EngineError: the training failed; the same command continues from its last checkpoint.
    """
    folder, bars = TrainingFolder(Path(spec.output.uri)), _Remembering(bars)
    check_output(folder)
    _check_base(spec)
    files = find_tables(spec)
    made = check_makers(spec, files, bars)
    now = fingerprint(spec, files)
    check_same(folder, now, bars)
    if done := TrainReport.finished(folder):
        return Outcome(done, new=False)
    rows = read_rows(spec, files, bars)
    examples.check_sides(rows, spec)
    with lock(folder.work):
        check_same(folder, now, bars)
        prepared = examples.prepare(spec, rows, folder, bars)
        begin(folder, spec, now)
        if not folder.predictions.exists():
            _fit(spec, folder, prepared.rows[TRAIN], options, bars)
        return Outcome(_publish(spec, folder, made, bars), new=True)


class _Remembering(Bars):
    """The given bars, with a record of their warnings for the model card."""

    def __init__(self, bars: Bars) -> None:
        super().__init__(bars.console, bars.quiet)
        self.steps = bars.steps  # type: ignore[method-assign]
        self.messages: list[str] = []
        self._pass_on = bars.warn

    def warn(self, message: str) -> None:
        self.messages.append(message)
        self._pass_on(message)


def _check_base(spec: TrainSpec) -> None:
    checkpoints.locate(spec.base.source, "base.source")
    longest, context = spec.training.max_length_tokens, checkpoints.context_tokens(spec.base.source)
    if context is not None and longest > context:
        raise ModelError(
            f"training.max_length_tokens {longest}: {spec.base.source} reads {context} tokens at most"
        )


def _fit(spec: TrainSpec, folder: TrainingFolder, rows: int, options: Options, bars: Bars) -> None:
    from routelmt_batch.engines.session import Session
    from routelmt_batch.learning.training.fit import fit

    folder.logs.mkdir(parents=True, exist_ok=True)
    steps = examples.steps_per_epoch(spec, rows) * spec.training.epochs
    with Session(folder.logs, options.address, options.verbose, stop_on_signals) as session:
        fit(spec, folder, steps, session, bars)


def _publish(
    spec: TrainSpec, folder: TrainingFolder, made: Signature | None, bars: _Remembering
) -> TrainReport:
    """Measure, draw and report. The card is written last: a router folder with a card is complete."""
    from routelmt_batch.learning.training import figures

    prepared, trained = Prepared.read(folder.prepared), Trained.read(folder.trained)
    table = pq.read_table(folder.predictions, partitioning=None)
    predicted, realised = table["predicted"].to_numpy(), table["realised"].to_numpy()
    directions = table["direction"].to_pylist()
    if lost := int((~np.isfinite(predicted)).sum()):
        raise ModelError(
            f"{folder.root}: the trained router predicts no number for {lost:,} of {len(predicted):,} "
            "held-out rows, so it cannot be used. Lower training.learning_rate, and use another --output"
        )
    held_out = _measure(predicted, realised, directions)
    unseen = sorted(set(held_out.directions) - set(prepared.directions))
    if unseen:
        bars.warn(f"tested on directions that it did not learn: {', '.join(unseen)}")
    parts = {"overall": held_out.overall, **held_out.directions}
    if few := [f"{name} {part.rows}" for name, part in parts.items() if part.rows < FEW_ROWS]:
        bars.warn(f"few rows are held out (below {FEW_ROWS}): {', '.join(few)}; their figures are unreliable")
    title = f"{spec.name}: predicted and realised {spec.target}"
    plot, plots = folder.root / model_card.PLOT, folder.root / model_card.PLOT_BY_DIRECTION
    figures.predicted_against_realised(predicted, realised, plot, title, spec.target)
    figures.by_direction(predicted, realised, directions, plots, spec.target)
    report = TrainReport(
        name=spec.name,
        router=str(folder.root),
        card=model_card.card(spec, made, prepared, trained),
        trained=trained,
        rows=prepared.rows,
        left_out_too_long=prepared.left_out_too_long,
        cut_off=prepared.cut_off,
        held_out=held_out,
        warnings=bars.messages,
    )
    write_text(folder.root / "README.md", model_card.readme(spec, report), "train.readme")
    report.write(folder.report, "train.report")
    write_json(folder.card, report.card, "train.card")
    shutil.rmtree(folder.checkpoints, ignore_errors=True)  # whole models with optimizer states
    return report


def _measure(predicted: Any, realised: Any, directions: list[str]) -> HeldOut:
    of_row = np.asarray(directions)
    rows = {name: of_row == name for name in sorted(set(directions))}
    return HeldOut(
        overall=measure(predicted, realised),
        directions={name: measure(predicted[mask], realised[mask]) for name, mask in rows.items()},
    )
