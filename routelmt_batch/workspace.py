"""One job's output folder, opened: its spec, input shards, ledger and fingerprints.

It decides whether a folder may be gone on with. It runs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routelmt_batch import checkpoints
from routelmt_batch.atomic import remove_temporary, write_json, write_text
from routelmt_batch.errors import InputError, ModelError, OutputError
from routelmt_batch.ledger import SCORES, TRANSLATIONS, Ledger, hold
from routelmt_batch.manifest import (
    changed_versions,
    check_scored,
    check_stage,
    known_shards,
    manifest,
    stage_fingerprints,
)
from routelmt_batch.progress import Bars
from routelmt_batch.routers.routelmt import RouterCard, read_card
from routelmt_batch.shards import Shard, discover, first_shards, inspect
from routelmt_batch.spec import JobSpec
from routelmt_batch.units import Unit, units

WORK = "_job"


@dataclass(frozen=True)
class Folder:
    """The paths of a job's output."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / WORK

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    @property
    def manifest(self) -> Path:
        return self.work / "manifest.json"

    @property
    def spec(self) -> Path:
        return self.work / "spec.yaml"

    @property
    def plan(self) -> Path:
        return self.work / "plan" / "plan.json"

    @property
    def success(self) -> Path:
        return self.root / "_SUCCESS"

    @property
    def job_report(self) -> Path:
        return self.root / "reports" / "job.json"

    def read_manifest(self) -> dict[str, Any] | None:
        if not self.manifest.exists():
            return None
        value: dict[str, Any] = json.loads(self.manifest.read_text(encoding="utf8"))
        return value

    def ledger(self) -> Ledger:
        return Ledger(self.work / "ledger.jsonl")

    def data(self, shard: str) -> Path:
        return self.root / "data" / shard

    def report(self, shard: str) -> Path:
        return self.root / "reports" / f"{shard}.json"


@dataclass(frozen=True)
class Workspace:
    """An open job. `shards` are the readable ones, in name order, with `limit` applied."""

    spec: JobSpec
    folder: Folder
    shards: tuple[Shard, ...]
    unreadable: dict[str, str]
    units: tuple[Unit, ...]
    card: RouterCard
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


def check_models(spec: JobSpec) -> RouterCard:
    """Check every model and the router before anything runs; see checkpoints and routers."""
    pools = {
        "models.small.source": spec.models.small,
        "models.large.source": spec.models.large,
        "router.source": spec.router,
    }
    for key, pool in pools.items():
        checkpoints.locate(pool.source, key)
        context = checkpoints.context_tokens(pool.source)
        if context is not None and pool.max_model_len_tokens > context:
            raise ModelError(
                f"{key.removesuffix('source')}max_model_len_tokens {pool.max_model_len_tokens}: "
                f"{pool.source} reads {context} tokens at most"
            )
    return read_card(spec)


def find_input(
    spec: JobSpec,
    only: str | None,
    limit: int | None,
    known: Mapping[str, Shard] | None = None,
    bars: Bars | None = None,
) -> tuple[list[Shard], dict[str, str]]:
    """The job's readable shards, and the reasons of the others. With a limit only the first shards
    that hold that many rows are read.

    Raises:
        InputError: there is no shard, none that can be read, or one that does not fit the spec.
    """
    found = discover(spec.input.uri, only)
    shards: list[Shard] = []
    unreadable: dict[str, str] = {}
    with (bars or Bars.none()).rows("read input", len(found), unit="shards") as advance:
        rows = 0
        while found and (limit is None or rows < limit):
            # With a limit, round by round: a shard that cannot be read is made up for by the next.
            some = found if limit is None else first_shards(found, limit - rows)
            good, bad = inspect(some, spec.input, known, advance)
            shards, unreadable = shards + good, unreadable | bad
            rows += sum(shard.rows for shard in good)
            found = found[len(some) :]
    if not shards:
        shown = "\n".join(f"  {name}: {reason}" for name, reason in list(unreadable.items())[:10])
        raise InputError(
            f"input.uri {spec.input.uri}: none of {len(unreadable)} shards can be read:\n{shown}"
        )
    return shards, unreadable


@contextlib.contextmanager
def open_workspace(spec: JobSpec, only: str | None, limit: int | None, bars: Bars) -> Iterator[Workspace]:
    """Check spec, models and input, take the output folder and hold it.

    Raises:
        UsageError: see the checks; of a new job nothing is written before all of them pass.
        InputChanged: a shard is not what an earlier run of this job read.
    """
    folder = Folder(Path(spec.output.uri))
    check_output(folder, spec)
    with contextlib.ExitStack() as stack:
        held = folder.work.is_dir()
        if held:
            stack.enter_context(hold(folder.work))
        begun = Begun.read(folder)
        card = check_models(spec)
        shards, unreadable = find_input(spec, only, limit, begun.known_shards(), bars)
        fingerprints = stage_fingerprints(spec, card, shards, limit)
        if not held:
            stack.enter_context(hold(folder.work))
            if folder.manifest.exists():
                raise OutputError(
                    f"{folder.root}: another run began this job a moment ago. Run the same command again "
                    "to go on with it"
                )
        begun.check(shards, unreadable, fingerprints, bars)
        unreadable = begun.unreadable() | unreadable
        _prepare(folder, begun.ledger)
        if not folder.spec.exists():
            write_text(folder.spec, spec.dump(), "spec")
        record = begun.keep(manifest(shards, unreadable, fingerprints, limit))
        if record != begun.manifest:
            write_json(folder.manifest, record, "manifest")
        rows = tuple(units(shards, limit))
        yield Workspace(spec, folder, tuple(shards), unreadable, rows, card, begun.ledger, fingerprints)


@dataclass(frozen=True)
class Begun:
    """What a folder holds of a job so far. What a stage was made from is on record from its first
    committed part on; before that it may change."""

    folder: Folder
    ledger: Ledger
    manifest: dict[str, Any]

    @classmethod
    def read(cls, folder: Folder) -> Begun:
        return cls(folder, folder.ledger(), folder.read_manifest() or {})

    @property
    def scored(self) -> bool:
        return bool(self.manifest and self.ledger.rows(SCORES))

    @property
    def translated(self) -> bool:
        return bool(self.manifest and self.ledger.rows(TRANSLATIONS))

    def known_shards(self) -> dict[str, Shard]:
        """Shards that were read with the columns of today's spec: the scores pin them."""
        return known_shards(self.manifest) if self.scored else {}

    def unreadable(self) -> dict[str, str]:
        """Shards that the scores were made without, whatever became of their files."""
        return dict(self.manifest["unreadable"]) if self.scored else {}

    def check(
        self,
        shards: list[Shard],
        unreadable: Mapping[str, str],
        fingerprints: Mapping[str, Mapping[str, Any]],
        bars: Bars,
    ) -> None:
        """Raises OutputError or InputChanged if committed work was made from something else."""
        if self.scored:
            check_scored(self.manifest, shards, unreadable)
            check_stage(self.folder.root, "scores", self.manifest, fingerprints)
            if told := changed_versions(self.manifest):
                bars.warn(f"this job was begun with other versions ({told}); committed rows stay as they are")
        if self.translated:
            check_stage(self.folder.root, "translations", self.manifest, fingerprints)

    def keep(self, now: dict[str, Any]) -> dict[str, Any]:
        """The manifest to have on record: today's, but for what committed work was made from."""
        if not self.scored:
            return now
        kept = ["scores", "translations"] if self.translated else ["scores"]
        before = self.manifest["fingerprints"]
        fingerprints = now["fingerprints"] | {stage: before[stage] for stage in kept}
        return now | {"fingerprints": fingerprints, "versions": self.manifest["versions"]}


def check_output(folder: Folder, spec: JobSpec) -> None:
    """Raises OutputError if the output is no folder, somebody else's, or inside the input."""
    root = folder.root
    if Path(spec.input.uri).is_dir() and root.resolve().is_relative_to(Path(spec.input.uri).resolve()):
        raise OutputError(
            f"output.uri {root}: lies inside input.uri {spec.input.uri}, where its shards would be taken "
            "for input. Give a folder elsewhere"
        )
    if root.exists() and not root.is_dir():
        raise OutputError(f"output.uri {root}: is a file; give a folder")
    if root.is_dir() and any(root.iterdir()) and not folder.work.is_dir():
        raise OutputError(
            f"output.uri {root}: not empty, and not a job's folder (no {WORK}/). "
            "Give an empty or new folder; nothing was touched"
        )


def _prepare(folder: Folder, ledger: Ledger) -> None:
    """Make the job's folders and clear away what a crash left."""
    for path in (folder.logs, folder.work / SCORES, folder.work / TRANSLATIONS):
        path.mkdir(parents=True, exist_ok=True)
    ledger.open_for_writing()
    ledger.sweep()
    remove_temporary(folder.root)


def is_whole(folder: Folder, output: Mapping[str, Any]) -> bool:
    """Whether an output shard and its report are there, by size; the job's end checks its hash."""
    path = folder.data(output["shard"])
    return (
        path.exists() and path.stat().st_size == output["bytes"] and folder.report(output["shard"]).exists()
    )
