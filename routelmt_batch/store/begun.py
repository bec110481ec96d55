"""The earlier work in an output folder, and whether a job may continue it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from routelmt_batch.corpus.shards import Shard, pins
from routelmt_batch.progress import Bars
from routelmt_batch.rows import STAGES
from routelmt_batch.spec import PassSpec
from routelmt_batch.spec.dtypes import Processors, here, settle
from routelmt_batch.store.folder import Folder, check_output
from routelmt_batch.store.ledger import Ledger
from routelmt_batch.store.manifest import (
    changed_versions,
    check_command,
    check_manifest,
    check_shards,
    check_stage,
)

Spec = TypeVar("Spec", bound=PassSpec)


@dataclass(frozen=True)
class Begun:
    """A job's earlier work in its folder. The first committed part of a stage fixes what the stage is made
    from; before that it may change."""

    folder: Folder
    ledger: Ledger
    manifest: dict[str, Any]

    @classmethod
    def read(cls, folder: Folder) -> Begun:
        """Raises WorkChanged if the manifest is not the one that the ledger names."""
        return cls.of(folder, folder.ledger())

    @classmethod
    def of(cls, folder: Folder, ledger: Ledger) -> Begun:
        manifest = folder.read_manifest()
        check_manifest(folder.manifest, ledger, manifest)
        return cls(folder, ledger, manifest or {})

    @property
    def stages(self) -> list[str]:
        """Names of the stages with committed work."""
        return [name for name, stage in STAGES.items() if self.manifest and self.ledger.rows(stage)]

    @functools.cached_property
    def shards(self) -> list[Shard]:
        """Raises WorkChanged if their list is damaged."""
        return self.folder.read_shards(self.manifest) if self.manifest else []

    def known_shards(self) -> dict[str, Shard]:
        """Shards by name, if committed work fixes the columns that they were read with."""
        return {shard.name: shard for shard in self.shards} if self.stages else {}

    def revisions(self, uris: Sequence[str]) -> dict[str, str]:
        """Input URIs at the commit of a hub's branch or tag, by the URI in the spec. It is the commit that
        the job first read, also before any work is committed. Other inputs are left out.

        Raises:
            UsageError: there is no such dataset or revision.
        """
        return pins(uris, self.manifest.get("revisions", {}))

    def dtypes(self) -> dict[str, str]:
        """What `dtype: auto` became when the job began, by pool."""
        return dict(self.manifest["dtypes"]) if self.stages else {}

    def unreadable(self) -> dict[str, str]:
        """Shards that the committed work left out, even if they can be read now."""
        return dict(self.manifest["unreadable"]) if self.stages else {}

    def check(
        self,
        command: str,
        shards: list[Shard],
        fingerprints: Mapping[str, Mapping[str, Any]],
        bars: Bars,
    ) -> None:
        """Raises OutputError or InputChanged if committed work was made from other settings or input."""
        if not self.stages:
            return
        check_command(self.folder.root, self.manifest, command)
        check_shards(self.shards, self.manifest["unreadable"], shards)
        for stage in self.stages:
            check_stage(self.folder.root, stage, self.manifest, fingerprints)
        if changes := changed_versions(self.manifest):
            bars.warn(f"this job began with other library versions ({changes}); committed rows are kept")

    def keep(self, now: dict[str, Any]) -> dict[str, Any]:
        """The manifest to write: the new one, but with the fingerprints and versions of committed work."""
        if not self.stages:
            return now
        before = self.manifest["fingerprints"]
        fingerprints = now["fingerprints"] | {stage: before[stage] for stage in self.stages}
        return now | {"fingerprints": fingerprints, "versions": self.manifest["versions"]}


@contextlib.contextmanager
def take(spec: PassSpec, bars: Bars) -> Iterator[Begun]:
    """Read a job's earlier work, and commit to it inside. Nothing is written before the first commit.

    Raises:
        OutputError: see check_output and Ledger.writing.
        WorkChanged: see Begun.read.
    """
    folder = Folder.at(spec.output.uri)
    check_output(folder, spec)
    ledger = folder.ledger()
    with ledger.writing(bars.warn):
        yield Begun.of(folder, ledger)


def settled(
    spec: Spec, begun: Begun, bars: Bars, look: Callable[[], Sequence[Processors]] = here
) -> tuple[Spec, dict[str, str]]:
    """Replace `dtype: auto` in a spec, and return what it became, by pool; see dtypes.settle. A continued job
    keeps the types that it began with."""
    spec, dtypes, choices = settle(spec, begun.dtypes(), look)
    for choice in choices:
        bars.say(str(choice), "info")
    return spec, dtypes
