"""The records of a training: its prepared rows, how it went, and its report. It trains nothing."""

from __future__ import annotations

from typing import Any

from routelmt_batch.files.record import Record
from routelmt_batch.learning.training.folder import TrainingFolder
from routelmt_batch.learning.training.regression import Measures
from routelmt_batch.routers.card import Scale


class Prepared(Record):
    """`_train/rows.json`: rows by side; directions and the targets' scale of the training rows."""

    rows: dict[str, int]
    left_out_too_long: int
    cut_off: int
    directions: list[str]
    scale: Scale


class Trained(Record):
    """`_train/trained.json`: how training went, and the checkpoint that is kept."""

    checkpoint: str
    validation_spearman: float
    best_step: int
    steps: int
    steps_planned: int
    epochs_run: float
    stopped_early: bool
    trainable_parameters: int


class HeldOut(Record):
    """How well a router predicts test rows: all, and each direction alone."""

    overall: Measures
    directions: dict[str, Measures]


class TrainReport(Record):
    """`_train/report.json`: a trained router."""

    name: str
    router: str
    card: dict[str, Any]
    trained: Trained
    rows: dict[str, int]
    left_out_too_long: int
    cut_off: int
    held_out: HeldOut
    warnings: list[str]

    @classmethod
    def finished(cls, folder: TrainingFolder) -> TrainReport | None:
        """The report of a finished training, or None."""
        return cls.read(folder.report) if folder.card.exists() else None

    @property
    def figures(self) -> dict[str, Any]:
        """The figures for a scheduler."""
        return self.held_out.overall.model_dump(include={"rows", "spearman", "r2"})
