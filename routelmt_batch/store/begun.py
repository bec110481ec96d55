"""What an output folder holds of a job that was begun: whether and with what it may go on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from routelmt_batch.corpus.shards import Shard
from routelmt_batch.progress import Bars
from routelmt_batch.rows import STAGES
from routelmt_batch.spec import PassSpec
from routelmt_batch.spec.dtypes import Processors, here, settle
from routelmt_batch.store.folder import Folder, check_output
from routelmt_batch.store.ledger import Ledger, lock_job
from routelmt_batch.store.manifest import (
    changed_versions,
    check_command,
    check_shards,
    check_stage,
    known_shards,
)

Spec = TypeVar("Spec", bound=PassSpec)


@dataclass(frozen=True)
class Begun:
    """What a folder holds of a job so far. What a stage was made from is on record from its first
    committed part on; before that it may change."""

    folder: Folder
    ledger: Ledger
    manifest: dict[str, Any]
    locked: bool  # by this process

    @classmethod
    def read(cls, folder: Folder, locked: bool = False) -> Begun:
        return cls(folder, folder.ledger(), folder.read_manifest() or {}, locked)

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
        command: str,
        shards: list[Shard],
        unreadable: Mapping[str, str],
        fingerprints: Mapping[str, Mapping[str, Any]],
        bars: Bars,
    ) -> None:
        """Raises OutputError or InputChanged if committed work was made from something else."""
        if not self.stages:
            return
        check_command(self.folder.root, self.manifest, command)
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


@contextlib.contextmanager
def take(spec: PassSpec) -> Iterator[Begun]:
    """Hold a job's output folder and read what was begun in it. Of a new job nothing is written yet.

    Raises:
        OutputError: see check_output and lock_job.
    """
    folder = Folder(Path(spec.output.uri))
    check_output(folder, spec)
    with contextlib.ExitStack() as stack:
        locked = folder.work.is_dir()
        if locked:
            stack.enter_context(lock_job(folder.work))
        yield Begun.read(folder, locked)


def settled(
    spec: Spec, begun: Begun, bars: Bars, look: Callable[[], Sequence[Processors]] = here
) -> tuple[Spec, dict[str, str]]:
    """A spec whose pools say `dtype: auto` no more, and what it became; see dtypes.settle. A job that goes on
    keeps what it began with."""
    spec, dtypes, told = settle(spec, begun.dtypes(), look)
    for message in told:
        bars.say(message, "info")
    return spec, dtypes
