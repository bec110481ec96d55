"""A training's output folder: the router, and `_train` with everything that a resume needs.

It decides whether a training may continue in a folder. It trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routelmt_batch.errors import OutputError
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.write import write_json, write_text
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.learning.training.tables import TableFile
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import CARD
from routelmt_batch.store import checkpoints
from routelmt_batch.store.folder import read_json
from routelmt_batch.store.manifest import changed, changed_versions, versions

# Keys that change the router. The others only change where and how fast it is trained.
_MEANING = {"target", "method", "lora", "split", "training", "prompt"}


@dataclass(frozen=True)
class TrainingFolder:
    """The paths of a training's output, on a disk. A JSON file is written when what it describes is done."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "_train"

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
        return read_json(DiskLocation(self.manifest)) if self.manifest.exists() else None

    @property
    def prepared(self) -> Path:
        return self.work / "rows.json"

    def rows(self, side: str) -> Path:
        return self.work / "rows" / f"{side}.parquet"

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def log(self) -> Path:
        return self.work / "log.jsonl"

    @property
    def trained(self) -> Path:
        return self.work / "trained.json"

    @property
    def predictions(self) -> Path:
        return self.work / "predictions.parquet"

    @property
    def report(self) -> Path:
        return self.work / "report.json"

    @property
    def card(self) -> Path:
        return self.root / CARD

    def last_checkpoint(self) -> Path | None:
        """The newest complete checkpoint. The state is the last file of a checkpoint to be written."""
        whole = [path for path in self.checkpoints.glob("checkpoint-*") if _is_whole(path)]
        return max(whole, key=step_of, default=None)

    def sweep(self) -> None:
        """Remove what a killed process left half-written: checkpoints, the log's last line."""
        if self.log.exists():
            with open(self.log, "r+b") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        for path in self.checkpoints.glob("checkpoint-*"):
            if not _is_whole(path):
                shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf8"))
    except (OSError, ValueError):
        return False
    return True


def check_output(folder: TrainingFolder) -> None:
    """Raises OutputError if the folder holds something that no training wrote."""
    if folder.root.exists() and not folder.root.is_dir():
        raise OutputError(f"output.uri {folder.root}: is a file; give a folder that is new or empty")
    if not folder.work.is_dir() and folder.root.is_dir() and any(folder.root.iterdir()):
        raise OutputError(
            f"output.uri {folder.root}: not empty, and not the output of a training. Give a new folder, or "
            "empty this one"
        )


def fingerprint(spec: TrainSpec, files: list[TableFile]) -> dict[str, Any]:
    """What the router depends on, by name, so that a mismatch can name it."""
    parts: dict[str, Any] = {
        "label tables": _digest(files, held_out=False),
        "held-out tables": _digest(files, held_out=True),
        "base.architecture": spec.base.architecture,
        "base's weights": checkpoints.weights_hash(spec.base.source),
        **{f"base's {file}": digest for file, digest in checkpoints.texts(spec.base.source).items()},
    }
    for key, value in spec.model_dump(mode="json", include=_MEANING).items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        parts |= {f"{key}.{name}" if name else key: item for name, item in inner}
    return parts


def _digest(files: list[TableFile], held_out: bool) -> str:
    lines = [file.sha256 for file in files if file.held_out == held_out]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else "none"


def check_same(folder: TrainingFolder, now: dict[str, Any], bars: Bars) -> None:
    """Raises OutputError, which lists the differences, if the folder's training was begun from other settings
    or data. A library of another version causes only a warning."""
    before = folder.read_manifest()
    if before is None:
        return
    if differences := changed(before["fingerprint"], now):
        raise OutputError(
            f"{folder.root}: its training was begun with other settings or data:\n{differences}\n"
            "Change them back, or train into another --output"
        )
    if differences := changed_versions(before):
        bars.warn(f"{folder.root}: begun with other library versions: {differences}")


def begin(folder: TrainingFolder, spec: TrainSpec, now: dict[str, Any]) -> None:
    """Write the spec and the manifest, unless they exist. From here on the training can be resumed."""
    if folder.manifest.exists():
        return
    write_text(folder.spec, spec.dump(), "train.spec")
    write_json(folder.manifest, {"fingerprint": now, "versions": versions()}, "train.manifest")
