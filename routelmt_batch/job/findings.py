"""What `verify` finds: an object, what is wrong with it, what is lost, and what to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from routelmt_batch.files.location import Location
from routelmt_batch.store.folder import Folder
from routelmt_batch.store.ledger import Ledger


class Remedy(StrEnum):
    """What to do about a finding."""

    REBUILD = "rebuild"
    RUN = "run"
    RESTORE = "restore"
    START_ANEW = "start anew"

    @property
    def words(self) -> str:
        return {
            Remedy.REBUILD: "`routelmt-batch verify --rebuild` mends it",
            Remedy.RUN: "run the job's command again, which mends it",
            Remedy.RESTORE: "restore it from a backup",
            Remedy.START_ANEW: "restore it from a backup, or start a new job with another --output",
        }[self]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a file of a job. It is no damage if the job is whole without the file."""

    where: Location
    wrong: str
    lost: str
    remedy: Remedy
    damage: bool = True

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "where": str(self.where), "remedy": self.remedy.value}


@dataclass
class Found:
    """What `verify` found so far.

    Args:
        ledger: None if the log is damaged.
        command: the job's; None if its manifest is damaged.
        rows: the job's rows by shard; empty if its manifest is damaged.
        again: whether lost output can be made again from the committed work.
        output_is_whole: of a finished job: its output shards and its reports.
        checked: how many files were checked, by kind.
    """

    folder: Folder
    ledger: Ledger | None = None
    command: str | None = None
    rows: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    finished: bool = False
    again: bool = False
    output_is_whole: bool = False
    checked: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def find(self, where: Location, wrong: str, lost: str, remedy: Remedy, damage: bool = True) -> None:
        self.findings.append(Finding(where, wrong, lost, remedy, damage))

    @property
    def damaged(self) -> bool:
        return any(finding.damage for finding in self.findings)

    @property
    def running(self) -> bool:
        return self.ledger is not None and self.ledger.log.holder is not None

    def is_whole(self, *names: str) -> bool:
        """Whether nothing is damaged in some folders of the output."""
        folders = [self.folder.root / name for name in names]
        return not any(
            finding.damage and finding.where.is_below(folder)
            for finding in self.findings
            for folder in folders
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "output": str(self.folder.root),
            "command": self.command,
            "finished": self.finished,
            "running": self.running,
            "damaged": self.damaged,
            "checked": self.checked,
            "findings": [finding.as_json() for finding in self.findings],
        }
