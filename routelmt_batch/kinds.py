"""Every router by its kind: what it reads, what runs it, whether its scores are gains.

One registry for jobs and evaluations. It knows names; the work is in the modules beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

ROUTER_FOLDER: Final = "a router folder, as `train` writes it"
SMALL_MODEL: Final = "the small model"
CORPUS: Final = "a corpus to count words in: Parquet with the same source column"
COMET_CHECKPOINT: Final = "a source-only COMET checkpoint, such as sentinel-src-24"

SEVERE_LOSS_GAIN: Final = -5.0  # a routed row with this gain or less is a severe loss (the paper's)


@dataclass(frozen=True)
class Kind:
    """`source` says what `router.source` names; empty: nothing."""

    source: str
    engine: Literal["prefill", "scorer", "column"]
    on_gpu: bool = False  # it runs a model
    gains: bool = False  # scores are in units of the metric; else only their order means something
    learned: bool = False  # from labels: no baseline
    needs_reference: bool = False


KINDS: Final = {
    "routelmt": Kind(ROUTER_FOLDER, "prefill", on_gpu=True, gains=True, learned=True),
    "routelmt-q": Kind(ROUTER_FOLDER, "prefill", on_gpu=True, learned=True),
    "encoder": Kind(ROUTER_FOLDER, "scorer", on_gpu=True, gains=True, learned=True),
    "random": Kind("", "scorer"),
    "length": Kind(SMALL_MODEL, "scorer"),
    "rarity": Kind(CORPUS, "scorer"),
    "entropy": Kind(SMALL_MODEL, "scorer", on_gpu=True),
    "sentinel": Kind(COMET_CHECKPOINT, "scorer", on_gpu=True),
    "oracle-gain": Kind("", "column", gains=True, needs_reference=True),
    "oracle-quality": Kind("", "column", needs_reference=True),
}
