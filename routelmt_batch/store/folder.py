"""The paths of an output folder, and the check that a job may write there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from routelmt_batch.corpus.shards import is_passed_over
from routelmt_batch.errors import OutputError
from routelmt_batch.spec import PassSpec
from routelmt_batch.store.ledger import Ledger

WORK = "_job"


@dataclass(frozen=True)
class OutputFolder:
    """The paths that every output has. The work folder holds what a command needs to continue."""

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

    def manifest_of_job(self) -> dict[str, Any]:
        """Raises OutputError if no job is there."""
        found = self.read_manifest()
        if found is None:
            lacking = self.manifest.relative_to(self.root)
            raise OutputError(f"{self.root}: no job there (no {lacking}). Give a job's output folder")
        return found


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
        """The numbers of shards and rows that the job covers; 0 before it has a manifest."""
        manifest = self.read_manifest() or {"shards": [], "limit": None}
        rows = sum(shard["rows"] for shard in manifest["shards"])
        return len(manifest["shards"]), min(rows, manifest["limit"] or rows)

    def ledger(self) -> Ledger:
        return Ledger(self.work / "ledger.jsonl")

    def data(self, shard: str) -> Path:
        return self.root / "data" / shard

    def report(self, shard: str) -> Path:
        return self.root / "reports" / f"{shard}.json"


def is_whole(folder: Folder, output: Mapping[str, Any]) -> bool:
    """Whether an output shard of the right size and its report exist. The job's end checks the hash."""
    path = folder.data(output["shard"])
    return (
        path.exists() and path.stat().st_size == output["bytes"] and folder.report(output["shard"]).exists()
    )


def check_output(folder: Folder, spec: PassSpec) -> None:
    """Raises OutputError if the output is a file, not a job's folder, inside the input, or not writable."""
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
    nearest = next(path for path in (folder.work, root, *root.resolve().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OutputError(
            f"output.uri {root}: cannot write to {nearest} ({error.strerror}). Give another folder, or "
            "change its permissions"
        ) from None
