"""A training's output folder: the router to be, and `_train` with all that is needed to go on.

It decides whether a folder may be gone on with. It trains nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from routelmt_batch.atomic import write_json, write_text
from routelmt_batch.errors import OutputError
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.learning.training.tables import TableFile
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import CARD
from routelmt_batch.store import checkpoints
from routelmt_batch.store.folder import OutputFolder
from routelmt_batch.store.manifest import changed, changed_versions, versions

# What a router is made of; the other keys say where and how fast.
_MEANING = {"target", "method", "lora", "split", "training", "prompt"}


class TrainingFolder(OutputFolder):
    """The paths of a training's output. A JSON file is written once what it describes is complete."""

    work_name = "_train"

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
        """The newest whole checkpoint. Its state is the last file that is written of one."""
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
            f"output.uri {folder.root}: not empty, and no training began it. Give a new folder, or remove "
            "what is there"
        )


def fingerprint(spec: TrainSpec, files: list[TableFile]) -> dict[str, Any]:
    """What the router depends on, by name, so that a mismatch can name it."""
    found: dict[str, Any] = {
        "label tables": _digest(files, held_out=False),
        "held-out tables": _digest(files, held_out=True),
        "base.architecture": spec.base.architecture,
        "base's weights": checkpoints.weights_hash(spec.base.source),
        "base's configuration and tokenizer": checkpoints.text_hash(spec.base.source),
    }
    for key, value in spec.model_dump(mode="json", include=_MEANING).items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        found |= {f"{key}.{part}" if part else key: inner for part, inner in parts}
    return found


def _digest(files: list[TableFile], held_out: bool) -> str:
    lines = [file.sha256 for file in files if file.held_out == held_out]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else "none"


def check_same(folder: TrainingFolder, now: dict[str, Any], bars: Bars) -> None:
    """Raises OutputError, with what differs, if the folder's training was begun with something else.

    A library in another version is a warning."""
    before = folder.read_manifest()
    if before is None:
        return
    if told := changed(before["fingerprint"], now):
        raise OutputError(
            f"{folder.root}: its training was begun with something else:\n{told}\n"
            "Change it back, or train into another --output"
        )
    if told := changed_versions(before):
        bars.warn(f"{folder.root}: begun with other library versions: {told}")


def begin(folder: TrainingFolder, spec: TrainSpec, now: dict[str, Any]) -> None:
    """Set down what is trained from what, once; the training can be gone on with from here."""
    if folder.manifest.exists():
        return
    write_text(folder.spec, spec.dump(), "train.spec")
    write_json(folder.manifest, {"fingerprint": now, "versions": versions()}, "train.manifest")
