"""`clean` removes the work files of a finished job, but keeps what audits need.

Manifest, spec, plan, ledger, logs, an audit's sample and everything outside `_job/` stay as they are.
Translations that no output row contains are also kept, because the audit page shows both models' texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.errors import OutputError
from routelmt_batch.files.location import Location
from routelmt_batch.files.write import sha256
from routelmt_batch.progress import Bars
from routelmt_batch.rows import (
    CHECKS,
    DECISIONS,
    FOLDS,
    FOLLOWERS,
    LARGE,
    OK,
    QUALITY,
    SCORES,
    TRANSLATIONS,
)
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.stages.passes import part_writer
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.ledger import Ledger, PartEntry
from routelmt_batch.threads import Stop, each

CLEARED = (FOLDS, SCORES, TRANSLATIONS, CHECKS, QUALITY, DECISIONS, FOLLOWERS)
_PART_ROWS = 100_000


@dataclass(frozen=True)
class Removed:
    """Files of one stage, and their bytes."""

    stage: str
    files: int
    bytes: int


@dataclass(frozen=True)
class Cleaned:
    """What was removed, by stage, and the bytes of the kept translations, which were written to new files."""

    removed: list[Removed]
    kept_bytes: int = 0

    @property
    def freed_bytes(self) -> int:
        return sum(stage.bytes for stage in self.removed) - self.kept_bytes


def to_remove(folder: Folder) -> Cleaned:
    """What `clean` would remove of a finished job. How much of it would be kept is not known yet.

    Raises:
        OutputError: no job is there, or it is not finished.
    """
    _check(folder)
    ledger = folder.ledger()
    return Cleaned(_sizes(ledger.unnamed(leaving_out=() if ledger.cleaned else CLEARED)))


def clean(folder: Folder, bars: Bars) -> Cleaned:
    """Remove the work files of a finished job, and return what was removed. A second call removes nothing.

    One line in the ledger releases the files. If the command is killed before, nothing has changed. If it is
    killed afterwards, the job is complete, and the next `clean` or `run` removes the rest.

    Raises:
        OutputError: no job is there, it is not finished, another process holds it, or an output shard
            changed after it was written.
    """
    _check(folder)
    ledger = folder.ledger()
    with ledger.writing(bars.warn):
        _check(folder)
        cleaned = Cleaned(_sizes(ledger.unnamed()))
        if not ledger.cleaned:
            _verify(folder, bars)
            removed = _sizes(ledger.unnamed(leaving_out=CLEARED))
            kept = list(_keep(folder, ledger, bars))
            ledger.record("cleaned", kept, cleared=[stage.name for stage in CLEARED])
            cleaned = Cleaned(removed, sum(entry.bytes for entry in kept))
        ledger.sweep()
        return cleaned


def _sizes(files: dict[str, list[Location]]) -> list[Removed]:
    return [
        Removed(stage, len(paths), sum(stat.bytes for path in paths if (stat := path.stat())))
        for stage, paths in files.items()
        if paths
    ]


def _check(folder: Folder) -> None:
    folder.manifest_of_job()
    if not folder.is_finished():
        folder.refuse_lost()
        raise OutputError(
            f"{folder.root}: this job is not finished and needs its work files; let it finish first"
        )


def _verify(folder: Folder, bars: Bars) -> None:
    """Raises OutputError if an output shard does not have the hash in _SUCCESS."""
    outputs = folder.outputs()

    def differs(output: dict[str, str], stop: Stop) -> bool:
        return sha256(folder.data(output["shard"]), stop) != output["sha256"]

    with (
        bars.rows("verify", len(outputs), unit="shards") as advance,
        each(differs, outputs) as outcomes,
    ):
        for output, bad in zip(outputs, outcomes, strict=True):
            if bad:
                raise OutputError(
                    f"{folder.data(output['shard'])}: changed after it was written. Nothing was cleaned, "
                    "because only the work files can restore it. Remove it, `run` the job and clean again"
                )
            advance(1)


def _keep(folder: Folder, ledger: Ledger, bars: Bars) -> Iterator[PartEntry]:
    """New parts with the translations that no output row contains. Label tables contain all of theirs."""
    if folder.manifest_of_job()["command"] == "label":
        return
    job = FinishedJob.read(folder)
    if ledger.totals(TRANSLATIONS).answered == sum(job.report.used_calls.values()):
        return
    write = part_writer(ledger, TRANSLATIONS, generation=ledger.generation)
    waiting = TRANSLATIONS.schema.empty_table()
    with bars.rows("keep", len(job.shards), unit="shards") as advance:
        for shard in job.shards:
            waiting = pa.concat_tables([waiting, *_unused(job, ledger, shard)])
            if waiting.num_rows >= _PART_ROWS:
                yield write(waiting)
                waiting = TRANSLATIONS.schema.empty_table()
            advance(1)
    if waiting.num_rows:
        yield write(waiting)


def _unused(job: FinishedJob, ledger: Ledger, shard: str) -> Iterator[pa.Table]:
    """A shard's committed translations by the model that the output row did not use."""
    routes: list[npt.NDArray[np.bool_]] = [np.zeros(0, bool)]
    for _, batch in job.batches(shard, ["route"]):
        routes.append(pc.fill_null(pc.equal(batch["route"], LARGE), False).to_numpy(zero_copy_only=False))
    by_large = np.concatenate(routes)
    for entry in ledger.overlapping(TRANSLATIONS, shard, 0, len(by_large)):
        wanted = (pc.field("shard") == shard) & (pc.field("status") == OK)
        table = ledger.read(entry).cast(TRANSLATIONS.schema).filter(wanted)
        here = pa.array(by_large[table["row"].to_numpy()])
        yield table.filter(pc.not_equal(pc.equal(table["route"], LARGE), here))
