"""Reports as tables on a terminal. It formats; it computes nothing."""

from routelmt_batch.cli.show.learning import calibration, labels, training
from routelmt_batch.cli.show.parts import console
from routelmt_batch.cli.show.report import job
from routelmt_batch.cli.show.tables import (
    checked,
    cleaned,
    comparison,
    health,
    stages,
    unfinished,
    verified,
    what_if,
)

__all__ = [
    "calibration",
    "checked",
    "cleaned",
    "comparison",
    "console",
    "health",
    "job",
    "labels",
    "stages",
    "training",
    "unfinished",
    "verified",
    "what_if",
]
