"""Earlier jobs that a job may take scores and translations from, and what of them still stands."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from routelmt_batch.corpus.shards import Shard
from routelmt_batch.corpus.units import Unit, units
from routelmt_batch.engines.lanes import Engine
from routelmt_batch.errors import OutputError
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.files.uris import locate
from routelmt_batch.files.write import sha256
from routelmt_batch.progress import Bars
from routelmt_batch.rows import LARGE, SCORES, SMALL, TRANSLATIONS
from routelmt_batch.spec import JobSpec, Reuse, Texts
from routelmt_batch.stages.recipe import Job
from routelmt_batch.store.folder import Folder
from routelmt_batch.threads import Stop

SCORE = "score"
KINDS = (SCORE, SMALL, LARGE)

# What of a stage's fingerprint does not change the score or translation of a text.
_OF_CORPUS = (
    "input shards",
    "--limit",
    "input.columns",
    "input.source_lang",
    "input.target_lang",
    "input.fold",
    "reuse",
    "translation_memory",
)


@dataclass(frozen=True)
class Earlier:
    """A finished job: its output shards, as units; where they have texts; which keys of its fingerprints
    differ from those of the job that looks, by kind; and the SHA-256 of its `_SUCCESS`."""

    output: str
    units: Sequence[Unit]
    texts: Texts
    changed: Mapping[str, Sequence[str]]
    success: str

    def is_usable(self, kind: str) -> bool:
        return not self.changed[kind]


def earlier_jobs(workspace: Job, engine: Engine, bars: Bars) -> list[Earlier]:
    """The jobs that the spec names, in its order.

    Raises:
        OutputError: see named.
    """
    given = workspace.spec.reuse
    folders = named(given, workspace.folder, bars) if given else []
    return [_opened(folder, workspace, engine) for folder in folders]


def named(given: Reuse, own: Folder, bars: Bars) -> list[Folder]:
    """The finished jobs that a spec names, the first first. Those that are not finished are left out, with a
    warning.

    Raises:
        OutputError: there is no job at a path that the spec names.
    """
    if given.latest:
        names = [name for name in own.root.parent.names() if name < own.root.name]
        beside = (Folder(own.root.parent / name) for name in sorted(names, reverse=True))
        found = list(itertools.islice(filter(_is_finished_run, beside), given.latest))
    else:
        found = []
        for folder in _given(given, own):
            if folder.manifest_of_job()["command"] != JobSpec.command:
                raise OutputError(
                    f"reuse: {folder.root}: holds no job of `run`. Give the output of such a job"
                )
            if folder.is_finished():
                found.append(folder)
            else:
                bars.warn(f"reuse: {folder.root} is left out: that job is not finished")
    if not found:
        bars.warn("reuse: there is no finished job to take anything from")
    return found


def _given(given: Reuse, own: Folder) -> Iterator[Folder]:
    for uri in given.outputs:
        location = locate(uri)
        names = location.parent.names()
        matching = [location.name] if location.name in names else fnmatch.filter(names, location.name)
        if not matching:
            raise OutputError(f"reuse: {location}: no such output. Give the output folder of a finished job")
        for name in sorted(matching, reverse=True):
            folder = Folder(location.parent / name)
            # A glob may match this job's own output, and folders that are none.
            if name == location.name or (folder != own and folder.manifest.exists()):
                yield folder


def _is_finished_run(folder: Folder) -> bool:
    return (
        folder.manifest.exists()
        and folder.manifest_of_job()["command"] == JobSpec.command
        and folder.is_finished()
    )


def _opened(folder: Folder, workspace: Job, engine: Engine) -> Earlier:
    spec = folder.read_spec(JobSpec)
    before, now = (
        depends_on(fingerprints)
        for fingerprints in (folder.manifest_of_job()["fingerprints"], workspace.fingerprints)
    )
    changed = {
        kind: [key for key in {**before[kind], **now[kind]} if before[kind].get(key) != now[kind].get(key)]
        for kind in KINDS
    }
    every = output_units(folder, folder.outputs(), engine)
    return Earlier(str(folder.root), every, spec.input.texts, changed, sha256(folder.success))


def depends_on(fingerprints: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What a score and the translations of both models depend on besides text and languages, by kind."""
    other = {SCORE: (), SMALL: ("models.large",), LARGE: ("models.small",)}
    return {
        kind: {
            key: value
            for key, value in fingerprints[(SCORES if kind == SCORE else TRANSLATIONS).name].items()
            if key not in _OF_CORPUS and not key.startswith(other[kind])
        }
        for kind in KINDS
    }


def output_units(folder: Folder, outputs: Iterable[Mapping[str, Any]], engine: Engine) -> list[Unit]:
    """The output shards of a job, as units."""
    with engine.each(_Footer(folder), outputs) as shards:
        return list(units(shards))


@dataclass(frozen=True)
class _Footer:
    """Finds the row groups of an output shard that is as it was written, in a task."""

    folder: Folder

    def __call__(self, output: Mapping[str, Any], stop: Stop) -> Shard:
        location = self.folder.data(output["shard"])
        stat = location.stat()
        if stat is None or sha256(location, stop) != output["sha256"]:
            raise OutputError(
                f"reuse: {location}: is not what its job wrote. Leave {self.folder.root} out of reuse, or "
                "restore the file; `routelmt-batch verify` says what else is damaged"
            )
        with parquet_file(location, stat.version) as file:
            rows = tuple(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
        name, digest = output["shard"], output["sha256"]
        return Shard(name, str(location), sum(rows), stat.bytes, digest, rows, stat.version)
