"""Which faults a seed draws: their kinds, and at which step of a run each happens. The same seed, the same faults."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from tests.chaos.kinds import DISK, STORE
from tests.files.faults import Fault as StoreFault

# A run without faults has so many steps and more: how many commits there are depends on the machine's speed.
STEPS: Final = 180
RUN_S: Final = 1.0
_STORE_EVERY = 8  # seeds


@dataclass(frozen=True)
class Fault:
    """One fault of one run. `at` and `lasts` are steps, `after_s` is from the run's start."""

    kind: str
    at: int = 0
    lasts: int = 1
    after_s: float = 0.0
    store: tuple[StoreFault, ...] = ()

    def __str__(self) -> str:
        when = f" at {self.at}" if self.at else f" after {self.after_s:.2f} s" if self.after_s else ""
        return f"{self.kind}{when}{f' for {self.lasts}' if self.lasts > 1 else ''}"


def drawn(seed: int) -> list[Fault]:
    """A seed's faults: one for each of one to three runs. Every eighth seed has its output in a store."""
    drawing = random.Random(f"chaos {seed}")
    kinds = STORE if seed % _STORE_EVERY == _STORE_EVERY - 1 else DISK
    # In turn, so that each kind comes equally often; what follows the first is free.
    first = list(kinds)[(seed // _STORE_EVERY if kinds is STORE else seed) % len(kinds)]
    return [_fault(kind, drawing) for kind in (first, *drawing.choices(list(kinds), k=drawing.randrange(3)))]


def _fault(kind: str, drawing: random.Random) -> Fault:
    at, after_s = drawing.randint(1, STEPS), round(drawing.uniform(0.05, RUN_S), 2)
    lasts = drawing.choice((1, 1, 3, 10, 1000)) if kind in ("full", "io") else 1
    if kind in STORE:
        return Fault(kind, after_s=after_s if "kill" in kind else 0.0, store=_store_faults(drawing))
    if kind in ("late kill",):
        return Fault(kind, after_s=after_s)
    return Fault(kind) if kind in ("two", "stderr") else Fault(kind, at, lasts)


def _store_faults(drawing: random.Random) -> tuple[StoreFault, ...]:
    """Answers of S3 that go wrong for a while: too few to outlast the time for which a store is waited for."""
    kinds = ("slow_down", "error_500", "cut_upload", "cut_after", "cut_download", "slow", "hide_in_listing")
    return tuple(
        StoreFault(
            kind,
            times=drawing.randint(1, 3),
            after=drawing.randint(0, 40),
            seconds=0.3,
            key=drawing.choice(("", "_job/log", "_job/scores", "_job/translations", "data/")),
            reset=drawing.random() < 0.5,
        )
        for kind in drawing.sample(kinds, k=drawing.randint(1, 3))
    )
