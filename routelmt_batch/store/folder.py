"""The paths of an output folder, and the check that a job may write there."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from routelmt_batch.corpus.shards import Shard
from routelmt_batch.errors import OutputError, StoreError, WorkChanged
from routelmt_batch.files.location import Location, Replaced, Stat
from routelmt_batch.files.uris import locate
from routelmt_batch.spec import PassSpec
from routelmt_batch.spec.file import read_written
from routelmt_batch.store.beforehand import check_place
from routelmt_batch.store.ledger import Ledger
from routelmt_batch.store.manifest import check_manifest
from routelmt_batch.store.shard_list import read_list

Spec = TypeVar("Spec", bound=PassSpec)

WORK = "_job"
_PROBE = ".routelmt-probe-"  # see _check_writes


@dataclass(frozen=True)
class Folder:
    """The paths of a job's output. The work folder holds what a run needs to go on."""

    root: Location

    @classmethod
    def at(cls, uri: str) -> Self:
        """The output at a path or URI."""
        return cls(locate(uri))

    @property
    def work(self) -> Location:
        return self.root / WORK

    @property
    def logs(self) -> Location:
        return self.work / "logs"

    @property
    def manifest(self) -> Location:
        return self.work / "manifest.json"

    @property
    def shard_lists(self) -> Location:
        return self.work / "shards"

    @property
    def spec(self) -> Location:
        return self.work / "spec.yaml"

    def read_manifest(self) -> dict[str, Any] | None:
        """Raises WorkChanged if it is damaged, and OutputError if no folder can be there."""
        try:
            found = read_json(self.manifest)
        except FileNotFoundError:
            return None
        except NotADirectoryError:
            raise OutputError(
                f"{self.manifest}: a part of this path is a file, not a folder. Give a job's output folder"
            ) from None
        if not _has_values(found, command=str, shards=dict) or "limit" not in found:
            raise damaged(self.manifest)
        return found

    def read_shards(self, manifest: Mapping[str, Any]) -> list[Shard]:
        """The readable input shards that a manifest names. Raises WorkChanged if their list is damaged."""
        return read_list(self.shard_lists, manifest["shards"])

    def manifest_of_job(self) -> dict[str, Any]:
        """Raises OutputError if no job is there, and WorkChanged if a job's manifest is gone."""
        found = self.read_manifest()
        if found is None:
            check_manifest(self.manifest, self.ledger(), found)
            lacking = self.manifest.relative_to(self.root)
            raise OutputError(f"{self.root}: no job there (no {lacking}). Give a job's output folder")
        return found

    @property
    def plan(self) -> Location:
        return self.work / "plan" / "plan.json"

    @property
    def success(self) -> Location:
        return self.root / "_SUCCESS"

    @property
    def job_report(self) -> Location:
        return self.root / "reports" / "job.json"

    @property
    def page(self) -> Location:
        return self.root / "reports" / "index.html"

    def is_finished(self) -> bool:
        """Whether the job is done and its output is still there."""
        return self.success.exists() and not self.is_reopened() and next(self._lost(), None) is None

    def is_reopened(self) -> bool:
        """Whether `--retry-failed` opened rows again, and their output is not written yet."""
        try:
            ledger = self.ledger()
        except WorkChanged:  # `verify` tells it; a finished job does not need its log
            return False
        reopened: set[str] = set()
        for event in ledger.events:
            if event["event"] == "retry_failed":
                reopened.update(event["shards"])
            elif event["event"] == "output":
                reopened.discard(event["shard"])
        return bool(reopened)

    def refuse_lost(self) -> None:
        """Raises WorkChanged if the job was finished and some of its output is gone, or of another size."""
        if self.success.exists() and (lost := next(self._lost(), None)):
            raise WorkChanged(
                f"{lost}: missing or of another size, although the job was finished. `routelmt-batch verify` "
                "says what is lost and how to go on"
            )

    def _lost(self) -> Iterator[Location]:
        if not self.job_report.exists():
            yield self.job_report
        for output in self.outputs():
            if not is_whole(self, output):
                report = self.report(output["shard"])
                yield self.data(output["shard"]) if report.exists() else report

    def outputs(self) -> list[dict[str, Any]]:
        """The output shards that _SUCCESS names. Raises WorkChanged if it is damaged."""
        shards = read_json(self.success).get("shards", [])
        if not isinstance(shards, list) or not all(
            _has_values(each, shard=str, bytes=int) for each in shards
        ):
            raise damaged(self.success)
        return shards

    def extent(self) -> tuple[int, int]:
        """The numbers of shards and rows that the job covers; 0 before it has a manifest."""
        manifest = self.read_manifest() or {"shards": {"count": 0, "rows": 0}, "limit": None}
        shards, rows = manifest["shards"]["count"], manifest["shards"]["rows"]
        return shards, min(rows, manifest["limit"] or rows)

    def ledger(self) -> Ledger:
        """Raises WorkChanged if the log is damaged, or if a segment is missing."""
        ledger = Ledger(self.work)
        ledger.log.check_complete()
        return ledger

    def read_spec(self, kind: type[Spec]) -> Spec:
        """The spec that a run of the job wrote. Raises WorkChanged if it is missing or damaged."""
        try:
            return read_written(self.spec.read_text(), kind)
        except (ValueError, FileNotFoundError):
            raise WorkChanged(
                f"{self.spec}: missing, empty or damaged (no spec). It says how the job ran: the job's "
                "command writes it again"
            ) from None

    def data(self, shard: str) -> Location:
        return self.root / "data" / shard

    def report(self, shard: str) -> Location:
        return self.root / "reports" / f"{shard}.json"


def read_json(location: Location) -> dict[str, Any]:
    """A JSON object in a file. Raises WorkChanged if the file contains something else."""
    try:
        value = location.read_json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise damaged(location)
    return value


def _has_values(value: object, **kinds: type) -> bool:
    """Whether this is a mapping that has these keys, with values of these types."""
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def damaged(location: object) -> WorkChanged:
    """The error about a control file that does not contain what a run writes there."""
    return WorkChanged(
        f"{location}: empty or damaged. `routelmt-batch verify` says what is lost and how to go on"
    )


def is_whole(folder: Folder, output: Mapping[str, Any]) -> bool:
    """Whether an output shard of the right size and its report exist. The job's end checks the hash."""
    found = folder.data(output["shard"]).stat()
    return found is not None and found.bytes == output["bytes"] and folder.report(output["shard"]).exists()


def check_output(folder: Folder, spec: PassSpec) -> None:
    """Raises OutputError if the output is a file, not a job's folder, inside the input or around it, or not
    writable."""
    root = folder.root
    check_place(root, spec.input.uris)
    if root.exists():
        raise OutputError(f"output.uri {root}: is a file; give a folder")
    found = [name for name in root.names() if not name.startswith(_PROBE)]
    if found and not folder.ledger().log.last and not folder.work.is_folder():
        raise OutputError(
            f"output.uri {root}: not empty, and not a job's folder (no {WORK}/). "
            "Give an empty or new folder; nothing was touched"
        )
    _check_writes(root)


def _check_writes(root: Location) -> None:
    """Raises OutputError if files cannot be written there, or two writers could overwrite each other's."""
    nearest = root.nearest()
    probe = nearest / f"{_PROBE}{uuid.uuid4().hex}"
    try:
        probe.create(b"one")
        for attempt in (_create_again, _replace_another):
            try:
                attempt(probe)
            except Replaced:
                continue
            raise OutputError(
                f"output.uri {root}: this store overwrites objects although it was asked not to (it has no "
                "conditional writes), so two runs could damage each other's work. Give an output in another "
                "store or on a disk"
            )
    except OSError as error:
        raise OutputError(
            f"output.uri {root}: cannot write to {nearest} ({error.strerror}). Give another folder, or "
            "change its permissions"
        ) from None
    finally:
        with contextlib.suppress(OSError, StoreError):
            probe.remove()


def _create_again(probe: Location) -> None:
    probe.create(b"two")


def _replace_another(probe: Location) -> None:
    with probe.draft() as draft:
        draft.write_bytes(b"two")
        probe.publish(draft, Stat(3, f'"{"0" * 32}"', "1"))
