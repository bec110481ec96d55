"""Guards of an evaluation, as a job has them: parses `--guard` and `--verify`, and applies them to routers.

A guard reads the small translation's quality before the large model is called. Verifying compares both
translations afterwards. This module knows names and arrays, not where qualities come from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from routelmt_batch.errors import UsageError
from routelmt_batch.learning.evaluation.contest import Routing
from routelmt_batch.learning.gains import QUALITY_LARGE, QUALITY_SMALL
from routelmt_batch.spec import near
from routelmt_batch.stats.measures import Floats, Guard


@dataclass(frozen=True)
class GuardSettings:
    """`guards` as NAME=ROUTER+QUALITY, `verified` as NAME=ROUTER+SMALL+LARGE, and settings for all of them
    as in a job's `guard`. Without `keep_small_above` a guard has no bound: the places go to the candidates
    with the lowest quality."""

    guards: Sequence[str] = ()
    verified: Sequence[str] = ()
    candidates: float = 2.0
    keep_small_above: float | None = None
    margin: float = 0.0
    metrics: Sequence[str] = ()  # NAME=METRIC, for the qualities NAME_small and NAME_large
    allow_pickle: bool = False  # whether metrics with weights that are pickles are trusted


@dataclass(frozen=True)
class Guarded:
    """A guard: its name, the router (with `large` also a guard) that it guards, and its qualities."""

    option: str
    name: str
    router: str
    small: str
    large: str | None = None

    @property
    def qualities(self) -> tuple[str, ...]:
        return (self.small,) if self.large is None else (self.small, self.large)


def parse(settings: GuardSettings, routers: Collection[str], taken: Collection[str]) -> list[Guarded]:
    """Parse the guards, then the verified routers, each in the order given.

    Raises:
        UsageError: a name is taken, a router is missing, or a number is out of range.
    """
    if not 1 <= settings.candidates < np.inf:
        raise UsageError(f"--candidates {settings.candidates}: give the candidates for each place, 1 or more")
    if not 0 <= settings.margin < np.inf:
        raise UsageError(f"--margin {settings.margin}: give points of quality, 0 or more")
    if settings.keep_small_above is not None and not np.isfinite(settings.keep_small_above):
        raise UsageError(f"--keep-small-above {settings.keep_small_above}: give points of quality")
    found: dict[str, Guarded] = {}
    for text in settings.guards:
        one = _parse("--guard", text, "NAME=ROUTER+QUALITY", {*taken, *found})
        found[one.name] = _with_router(one, routers)
    guarded = [*routers, *found]
    for text in settings.verified:
        one = _parse("--verify", text, "NAME=ROUTER+SMALL+LARGE", {*taken, *found})
        found[one.name] = _with_router(one, guarded)
    return list(found.values())


def _parse(option: str, text: str, form: str, taken: Collection[str]) -> Guarded:
    name, _, rest = text.partition("=")
    terms = rest.split("+")
    if not name or not all(terms) or len(terms) != form.count("+") + 1:
        raise UsageError(f"{option} {text}: give {form}")
    if name in taken:
        raise UsageError(f"{option} {text}: another router is named {name}; give another name")
    return Guarded(f"{option} {text}", name, *terms)


def _with_router(one: Guarded, known: Collection[str]) -> Guarded:
    if one.router not in known:
        raise UsageError(
            f"{one.option}: no router is named {one.router!r}{near(one.router, known)}; add it with "
            "--router or --scores"
        )
    return one


def routings(
    guarded: Collection[Guarded],
    settings: GuardSettings,
    routers: Mapping[str, Routing],
    qualities: Mapping[str, Floats],
) -> dict[str, Routing]:
    """The routers, then the guards, all on the same rows; `qualities` are (rows,) each."""
    found = dict(routers)
    for one in guarded:
        base, small = found[one.router], qualities[one.small]
        if one.large is None:
            guard = Guard(small, settings.candidates, settings.keep_small_above)
            found[one.name] = replace(base, guard=guard)
        else:
            found[one.name] = replace(base, keeps_small=qualities[one.large] < small - settings.margin)
    return found


def describe(one: Guarded, settings: GuardSettings) -> str:
    """What a guard does, in words."""
    if one.large is not None:
        worse = f"{one.large} < {one.small} - {settings.margin:g}"
        return f"{one.router}; the small translation is kept where {worse}"
    above = settings.keep_small_above
    chosen = f"of lowest {one.small}" if above is None else f"without {one.small} > {above:g}"
    return f"{one.router}; of {settings.candidates:g} candidates a place, those {chosen}"


def doubts(guarded: Collection[Guarded], qualities: Mapping[str, Floats]) -> Iterator[str]:
    """Warnings about the numbers of guards."""
    for one in guarded:
        if {QUALITY_SMALL, QUALITY_LARGE} & {*one.qualities}:
            yield f"{one.name}: guarded by the quality that is also measured, so its result is an upper bound"
        missing = np.logical_or.reduce([np.isnan(qualities[name]) for name in one.qualities])
        if missing.any():
            rule = "are not known to be good" if one.large is None else "are not verified"
            yield (
                f"{one.name}: {int(missing.sum()):,} of {len(missing):,} rows have no "
                f"{' or no '.join(one.qualities)}: they {rule}, and the large translation is kept"
            )
