"""An open job: its spec, input shards, ledger and fingerprints. It runs nothing."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from routelmt_batch.corpus.shards import Shard, discover_all, first_shards, inspect
from routelmt_batch.corpus.units import Unit, units
from routelmt_batch.errors import InputError, OutputError, WorkChanged
from routelmt_batch.files.disk import DiskLocation, drafts
from routelmt_batch.files.uris import locate
from routelmt_batch.files.write import write_json, write_text
from routelmt_batch.names import one_line
from routelmt_batch.progress import Bars
from routelmt_batch.spec import PassSpec
from routelmt_batch.store.beforehand import check_names
from routelmt_batch.store.begun import Begun, Spec
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.ledger import Ledger
from routelmt_batch.store.manifest import digest, manifest
from routelmt_batch.store.shard_list import write_list
from routelmt_batch.threads import Each, each

_MOST_SHOWN = 10

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class Workspace(Generic[Spec, R]):
    """An open job. `shards` are the readable ones, in name order, with `limit` applied."""

    spec: Spec
    folder: Folder
    shards: tuple[Shard, ...]
    unreadable: dict[str, str]
    units: tuple[Unit, ...]
    recipe: R
    ledger: Ledger
    fingerprints: dict[str, dict[str, Any]]

    @property
    def rows(self) -> int:
        return sum(unit.rows for unit in self.units)

    @functools.cached_property
    def shard_rows(self) -> dict[str, int]:
        """Rows of each shard that the job covers, by name, in name order."""
        rows = {shard.name: 0 for shard in self.shards}
        for unit in self.units:
            rows[unit.shard.name] += unit.rows
        return rows

    @functools.cached_property
    def ranks(self) -> dict[str, int]:
        return {name: rank for rank, name in enumerate(self.shard_rows)}

    @functools.cached_property
    def positions(self) -> dict[str, int]:
        """Place of each shard's first row among all rows of the job."""
        ends = itertools.accumulate(self.shard_rows.values(), initial=0)
        return dict(zip(self.shard_rows, ends, strict=False))

    @property
    def folded_rows(self) -> int:
        """Rows that follow another row with the same text and languages."""
        return self.ledger.folded_rows

    @property
    def calls(self) -> int:
        """Rows that follow no other row."""
        return self.rows - self.folded_rows


AnyWorkspace: TypeAlias = Workspace[Any, Any]


class Recipe(Protocol):
    """What a job's stages are made from, beside its input shards.

    `spec` is the job's, without settings that turned out not to be needed.
    """

    @property
    def spec(self) -> Any: ...

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        """What each stage's committed work depends on: values by name, by stage."""
        ...


def open_workspace(
    begun: Begun,
    recipe: R,
    bars: Bars,
    only: str | None = None,
    limit: int | None = None,
    dtypes: Mapping[str, str] | None = None,
    spread: Each = each,
) -> Workspace[Any, R]:
    """Read the input and open the job that the checked `recipe` describes.

    Args:
        dtypes: what `dtype: auto` became, by pool.
        spread: reads the shards that no earlier run has read.

    Raises:
        UsageError: see the checks. Nothing is written for a new job until all of them pass.
        InputChanged: a shard changed since an earlier run of this job read it.
    """
    folder, ledger, spec = begun.folder, begun.ledger, recipe.spec
    revisions = begun.revisions(spec.input.uris)
    shards, unreadable = find_input(spec, only, limit, begun.known_shards(), bars, revisions, spread)
    fingerprints = recipe.fingerprints(shards, limit)
    begun.check(spec.command, shards, fingerprints, bars)
    unreadable = begun.unreadable() | unreadable
    left = list(drafts(folder.root.path)) if isinstance(folder.root, DiskLocation) else []
    if left or not folder.is_finished():
        folder.root.make_private()
        ledger.take()
        ledger.check_parts()
        for draft in left:
            draft.unlink(missing_ok=True)
    ledger.sweep()
    try:
        folder.read_spec(type(spec))
    except WorkChanged:  # there is none yet, or it is damaged
        write_spec(folder, spec, ledger)
    keep_manifest(
        begun,
        shards,
        manifest(spec.command, unreadable, fingerprints, limit, dict(dtypes or {}), revisions),
    )
    rows = tuple(units(shards, limit))
    return Workspace(spec, folder, tuple(shards), unreadable, rows, recipe, ledger, fingerprints)


def keep_manifest(begun: Begun, shards: list[Shard], now: dict[str, Any]) -> None:
    """Write the manifest, unless this run has nothing to write.

    A run that works on the job writes it even if it is right: with the run's number in it, it differs from
    what a run before may be about to write, and so cannot be replaced by that.
    """
    ledger, before, now = begun.ledger, begun.manifest, begun.keep(now)
    listed = before["shards"] if begun.stages and shards == begun.shards else None
    if listed and now | {"shards": listed, "epoch": ledger.epoch or before["epoch"]} == before:
        return
    ledger.take()
    listed = listed or write_list(begun.folder.shard_lists, shards, ledger.epoch)
    now |= {"shards": listed, "epoch": ledger.epoch}
    ledger.record("manifest", sha256=digest(now), before=digest(before) if before else None)
    write_json(begun.folder.manifest, now, "manifest", ledger.check)


def write_spec(folder: Folder, spec: PassSpec, ledger: Ledger) -> None:
    """Write the spec, with the run's number in it: see keep_manifest."""
    ledger.take()
    text = f"# Written by run {ledger.epoch} of this job.\n{spec.dump()}"
    write_text(folder.spec, text, "spec", ledger.check)


def find_input(
    spec: PassSpec,
    only: str | None,
    limit: int | None,
    known: Mapping[str, Shard] | None = None,
    bars: Bars | None = None,
    revisions: Mapping[str, str] | None = None,
    spread: Each = each,
) -> tuple[list[Shard], dict[str, str]]:
    """The job's readable shards, and why the others cannot be read. With a limit, only the first shards
    that hold that many rows are read.

    Args:
        revisions: see Begun.revisions.
        spread: see corpus.shards.inspect.

    Raises:
        InputError: there are no shards, none can be read, or one does not fit the spec.
    """
    uris = [(revisions or {}).get(uri, uri) for uri in spec.input.uris]
    remaining = discover_all(uris, only)
    check_names(locate(spec.output.uri), uris, [name for name, _ in remaining])
    shards: list[Shard] = []
    unreadable: dict[str, str] = {}
    bars = bars or Bars.none()
    with bars.rows("read input", len(remaining), unit="shards") as advance:
        rows = 0
        while remaining and (limit is None or rows < limit):
            # With a limit, read in rounds: the next shards replace those that cannot be read.
            batch = remaining if limit is None else first_shards(remaining, limit - rows)
            good, bad = inspect(batch, spec.input, known, advance, spec.also, spec.added, spread)
            shards, unreadable = shards + good, unreadable | bad
            rows += sum(shard.rows for shard in good)
            remaining = remaining[len(batch) :]
    if not shards:
        shown = "\n".join(
            f"  {one_line(name)}: {reason}" for name, reason in list(unreadable.items())[:_MOST_SHOWN]
        )
        raise InputError(
            f"input.uri {', '.join(spec.input.uris)}: none of {len(unreadable)} shards can be read:\n"
            f"{shown}\nRepair or replace them, or give another input.uri"
        )
    for name, reason in list(unreadable.items())[:_MOST_SHOWN]:
        bars.warn(f"{one_line(name)} cannot be read and is left out: {reason}")
    return shards, unreadable


def refuse_cleaned(workspace: AnyWorkspace, done: object | None, option: str | None = None) -> None:
    """Raises OutputError if a run needs work files that `clean` removed: because the job is no longer `done`,
    or because of an `option`."""
    root = workspace.folder.root
    if workspace.ledger.cleaned and not done:
        raise OutputError(
            f"{root}: `clean` removed its work files, and files in its data/ or reports/ are now missing or "
            "changed. Restore them, or start a new job with another --output. `routelmt-batch verify` names "
            "them"
        )
    if workspace.ledger.cleaned and option:
        raise OutputError(
            f"{root}: `clean` removed its work files, and {option} needs them. Leave it out, or start a new "
            "job with another --output"
        )
