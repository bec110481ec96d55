"""The kinds of routers that `router.kind` may name, and what `router.source` names for each.

It knows only names. Each kind has a class, listed in routers/registry.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SEVERE_LOSS_GAIN: Final = -5.0  # a routed row with this gain or less is a severe loss (paper's definition)


@dataclass(frozen=True)
class Source:
    """What `router.source` names: its placeholder in a command's help, and its description."""

    metavar: str
    words: str


ROUTER_FOLDER: Final = Source("FOLDER", "a router folder, as `train` writes it")
SMALL_MODEL: Final = Source("MODEL", "the small model")
CORPUS: Final = Source("CORPUS", "a corpus to count words in: Parquet with the same source column")
COMET_CHECKPOINT: Final = Source("CHECKPOINT", "a source-only COMET checkpoint, such as sentinel-src-24")

KINDS: Final[dict[str, Source | None]] = {
    "routelmt": ROUTER_FOLDER,
    "routelmt-q": ROUTER_FOLDER,
    "encoder": ROUTER_FOLDER,
    "length": SMALL_MODEL,
    "rarity": CORPUS,
    "entropy": SMALL_MODEL,
    "sentinel": COMET_CHECKPOINT,
    "random": None,
}
ORACLES: Final = ("oracle-gain", "oracle-quality")  # only for evaluations: they need references
