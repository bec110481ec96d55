"""One job's output folder, opened: its spec, input shards, ledger and fingerprints.

It decides whether a folder may be gone on with. It runs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeAlias, TypeVar

from routelmt_batch.atomic import remove_temporary, write_json, write_text
from routelmt_batch.corpus.shards import Shard, discover_all, first_shards, inspect, is_passed_over
from routelmt_batch.corpus.units import Unit, units
from routelmt_batch.errors import InputError, ModelError, OutputError
from routelmt_batch.progress import Bars
from routelmt_batch.rows import STAGES
from routelmt_batch.spec import PassSpec, Pool
from routelmt_batch.spec.dtypes import Processors, here, settle
from routelmt_batch.store import checkpoints
from routelmt_batch.store.ledger import Ledger, hold
from routelmt_batch.store.manifest import (
    changed_versions,
    check_kind,
    check_shards,
    check_stage,
    known_shards,
    manifest,
)

WORK = "_job"
_MOST_TOLD = 10


@dataclass(frozen=True)
class OutputFolder:
    """The paths that every output has: what a command needs to go on is in the work folder."""

    root: Path
    work_name: ClassVar[str] = WORK

    @property
    def work(self) -> Path:
        return self.root / self.work_name

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    @property
    def manifest(self) -> Path:
        return self.work / "manifest.json"

    @property
    def spec(self) -> Path:
        return self.work / "spec.yaml"

    def read_manifest(self) -> dict[str, Any] | None:
        if not self.manifest.exists():
            return None
        value: dict[str, Any] = json.loads(self.manifest.read_text(encoding="utf8"))
        return value


class Folder(OutputFolder):
    """The paths of a job's output."""

    @property
    def plan(self) -> Path:
        return self.work / "plan" / "plan.json"

    @property
    def success(self) -> Path:
        return self.root / "_SUCCESS"

    @property
    def job_report(self) -> Path:
        return self.root / "reports" / "job.json"

    @property
    def page(self) -> Path:
        return self.root / "reports" / "index.html"

    def is_finished(self) -> bool:
        """Whether the job is done and its output is still there."""
        if not (self.success.exists() and self.job_report.exists()):
            return False
        outputs = json.loads(self.success.read_text(encoding="utf8"))["shards"]
        return all(is_whole(self, output) for output in outputs)

    def extent(self) -> tuple[int, int]:
        """Shards, and rows of them, that the job covers; none before it has a manifest."""
        found = self.read_manifest() or {"shards": [], "limit": None}
        rows = sum(shard["rows"] for shard in found["shards"])
        return len(found["shards"]), min(rows, found["limit"] or rows)

    def ledger(self) -> Ledger:
        return Ledger(self.work / "ledger.jsonl")

    def data(self, shard: str) -> Path:
        return self.root / "data" / shard

    def report(self, shard: str) -> Path:
        return self.root / "reports" / f"{shard}.json"


Spec = TypeVar("Spec", bound=PassSpec)
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


def check_pool(key: str, pool: Pool) -> None:
    """Raises ModelError if a pool's model is not there or reads less than the pool asks for."""
    checkpoints.locate(pool.source, f"{key}.source")
    context = checkpoints.context_tokens(pool.source)
    if context is not None and pool.max_model_len_tokens > context:
        raise ModelError(
            f"{key}.max_model_len_tokens {pool.max_model_len_tokens}: {pool.source} reads {context} "
            "tokens at most"
        )


def find_input(
    spec: PassSpec,
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
    found = discover_all(spec.input.uris, only)
    shards: list[Shard] = []
    unreadable: dict[str, str] = {}
    bars = bars or Bars.none()
    with bars.rows("read input", len(found), unit="shards") as advance:
        rows = 0
        while found and (limit is None or rows < limit):
            # With a limit, round by round: a shard that cannot be read is made up for by the next.
            some = found if limit is None else first_shards(found, limit - rows)
            good, bad = inspect(some, spec.input, known, advance, spec.also, spec.added)
            shards, unreadable = shards + good, unreadable | bad
            rows += sum(shard.rows for shard in good)
            found = found[len(some) :]
    if not shards:
        shown = "\n".join(f"  {name}: {reason}" for name, reason in list(unreadable.items())[:_MOST_TOLD])
        raise InputError(
            f"input.uri {', '.join(spec.input.uris)}: none of {len(unreadable)} shards can be read:\n{shown}"
        )
    for name, reason in list(unreadable.items())[:_MOST_TOLD]:
        bars.warn(f"{name} cannot be read and is left out: {reason}")
    return shards, unreadable


AnyWorkspace: TypeAlias = Workspace[Any, Any]


class Recipe(Protocol):
    """What a job's stages are made from, beside its input shards.

    `spec` is the job's, without what turned out not to be needed.
    """

    @property
    def spec(self) -> Any: ...

    def fingerprints(self, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
        """By stage: what its committed work depends on, by name."""
        ...


@contextlib.contextmanager
def take(spec: PassSpec) -> Iterator[Begun]:
    """Hold a job's output folder and read what was begun in it. Of a new job nothing is written yet.

    Raises:
        OutputError: see check_output and hold.
    """
    folder = Folder(Path(spec.output.uri))
    check_output(folder, spec)
    with contextlib.ExitStack() as stack:
        held = folder.work.is_dir()
        if held:
            stack.enter_context(hold(folder.work))
        yield Begun.read(folder, held)


def settled(
    spec: Spec, begun: Begun, bars: Bars, look: Callable[[], Sequence[Processors]] = here
) -> tuple[Spec, dict[str, str]]:
    """A spec whose pools say `dtype: auto` no more, and what it became; see dtypes.settle. A job that goes on
    keeps what it began with."""
    spec, dtypes, told = settle(spec, begun.dtypes(), look)
    for message in told:
        bars.say(message, "info")
    return spec, dtypes


@contextlib.contextmanager
def open_workspace(
    begun: Begun,
    recipe: R,
    bars: Bars,
    only: str | None = None,
    limit: int | None = None,
    dtypes: Mapping[str, str] | None = None,
) -> Iterator[Workspace[Any, R]]:
    """Read the input and open the job that its `recipe`, checked before, describes.

    Args:
        dtypes: what `dtype: auto` became, by pool.

    Raises:
        UsageError: see the checks; of a new job nothing is written before all of them pass.
        InputChanged: a shard is not what an earlier run of this job read.
    """
    folder, spec = begun.folder, recipe.spec
    with contextlib.ExitStack() as stack:
        shards, unreadable = find_input(spec, only, limit, begun.known_shards(), bars)
        fingerprints = recipe.fingerprints(shards, limit)
        if not begun.held:
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
        record = begun.keep(manifest(shards, unreadable, fingerprints, limit, dict(dtypes or {})))
        if record != begun.manifest:
            write_json(folder.manifest, record, "manifest")
        rows = tuple(units(shards, limit))
        yield Workspace(spec, folder, tuple(shards), unreadable, rows, recipe, begun.ledger, fingerprints)


@dataclass(frozen=True)
class Begun:
    """What a folder holds of a job so far. What a stage was made from is on record from its first
    committed part on; before that it may change."""

    folder: Folder
    ledger: Ledger
    manifest: dict[str, Any]
    held: bool  # by this process

    @classmethod
    def read(cls, folder: Folder, held: bool = False) -> Begun:
        return cls(folder, folder.ledger(), folder.read_manifest() or {}, held)

    @property
    def stages(self) -> list[str]:
        """Names of the stages with committed work."""
        return [name for name, stage in STAGES.items() if self.manifest and self.ledger.rows(stage)]

    def known_shards(self) -> dict[str, Shard]:
        """Shards that were read with the columns of today's spec: committed work pins them."""
        return known_shards(self.manifest) if self.stages else {}

    def dtypes(self) -> dict[str, str]:
        """What `dtype: auto` was when the job began, by pool."""
        return dict(self.manifest["dtypes"]) if self.stages else {}

    def unreadable(self) -> dict[str, str]:
        """Shards that the committed work was made without, whatever became of their files."""
        return dict(self.manifest["unreadable"]) if self.stages else {}

    def check(
        self,
        shards: list[Shard],
        unreadable: Mapping[str, str],
        fingerprints: Mapping[str, Mapping[str, Any]],
        bars: Bars,
    ) -> None:
        """Raises OutputError or InputChanged if committed work was made from something else."""
        if not self.stages:
            return
        check_kind(self.folder.root, self.manifest, fingerprints)
        check_shards(self.manifest, shards, unreadable)
        for stage in self.stages:
            check_stage(self.folder.root, stage, self.manifest, fingerprints)
        if told := changed_versions(self.manifest):
            bars.warn(f"this job was begun with other versions ({told}); committed rows stay as they are")

    def keep(self, now: dict[str, Any]) -> dict[str, Any]:
        """The manifest to have on record: today's, but for what committed work was made from."""
        if not self.stages:
            return now
        before = self.manifest["fingerprints"]
        fingerprints = now["fingerprints"] | {stage: before[stage] for stage in self.stages}
        return now | {"fingerprints": fingerprints, "versions": self.manifest["versions"]}


def check_output(folder: Folder, spec: PassSpec) -> None:
    """Raises OutputError if the output is no folder, somebody else's, inside the input, or not writable."""
    root = folder.root
    for uri in spec.input.uris:
        inside, source = root.resolve(), Path(uri).resolve()
        below = source.is_dir() and inside.is_relative_to(source)
        if below and not is_passed_over(inside.relative_to(source)):
            raise OutputError(
                f"output.uri {root}: lies inside input.uri {uri}, where its shards would be taken for "
                "input. Give a folder elsewhere"
            )
    if root.exists() and not root.is_dir():
        raise OutputError(f"output.uri {root}: is a file; give a folder")
    if root.is_dir() and any(root.iterdir()) and not folder.work.is_dir():
        raise OutputError(
            f"output.uri {root}: not empty, and not a job's folder (no {WORK}/). "
            "Give an empty or new folder; nothing was touched"
        )
    place = next(folder for folder in (folder.work, root, *root.resolve().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise OutputError(
            f"output.uri {root}: {place} cannot be written to ({error.strerror}). Give another folder, or "
            "mend its rights"
        ) from None


def _prepare(folder: Folder, ledger: Ledger) -> None:
    """Make the job's folders and clear away what a crash left."""
    for path in (folder.logs, *(folder.work / stage for stage in STAGES)):
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


def refuse_cleaned(workspace: AnyWorkspace, done: object | None, asked: str | None = None) -> None:
    """Raises OutputError if what is wanted needs work files that `clean` removed: a job that is not `done`
    any more, or what is `asked` of one that is."""
    root = workspace.folder.root
    if workspace.ledger.cleaned and not done:
        raise OutputError(
            f"{root}: its work files were cleaned away when it was finished, and now files of its data/ or "
            "reports/ are missing or changed. Restore them, or start a new job with another --output"
        )
    if workspace.ledger.cleaned and asked:
        raise OutputError(
            f"{root}: its work files were cleaned away, and {asked} needs them. Leave it out, or start a new "
            "job with another --output"
        )
