"""Label tables as a training reads them: which files, who made them, which rows can be learnt from.

It knows columns and targets, and neither models nor tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from routelmt_batch import checkpoints
from routelmt_batch.atomic import sha256
from routelmt_batch.errors import InputError, ModelError
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.learning.training.split import TEST, sides
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import LANGUAGES
from routelmt_batch.rows import LABEL_METADATA
from routelmt_batch.shards import discover, is_text
from routelmt_batch.spec import near

TARGETS = {"gain": "gain", "quality": "quality_small"}
_TEXTS = ("source", "source_lang", "target_lang")
_UNKNOWN = {"name": "unknown", "signature": "unknown"}


@dataclass(frozen=True)
class TableFile:
    """One Parquet file of labels. `made` is its metadata; empty if it says nothing."""

    path: Path
    sha256: str
    held_out: bool
    made: dict[str, Any]


def find_tables(spec: TrainSpec) -> list[TableFile]:
    """Every file of the label tables, `test_tables` last, once its columns are known to fit.

    Raises:
        InputError: no such file, one that is given twice or not readable, or a column that it lacks.
    """
    found: list[TableFile] = []
    for key, uris in (("tables", spec.tables), ("test_tables", spec.test_tables)):
        for uri in uris:
            for _, path in discover(uri, key=key):
                schema = _schema(path)
                _check_columns(path, schema, spec)
                found.append(TableFile(path, sha256(path), key == "test_tables", _made(path, schema)))
    count = Counter(file.sha256 for file in found)
    if twice := [str(file.path) for file in found if count[file.sha256] > 1]:
        names = ", ".join(twice)
        raise InputError(f"{names}: the same rows, and would count twice: give them once")
    return found


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet ({' '.join(str(error).split())[:200]})") from error


def _check_columns(path: Path, schema: pa.Schema, spec: TrainSpec) -> None:
    for name in dict.fromkeys((*_TEXTS, TARGETS[spec.target], spec.split.by)):
        why = " (split.by)" if name == spec.split.by and name not in _TEXTS else ""
        if name not in schema.names:
            raise InputError(
                f"{path}: no column {name!r}{why}{near(name, schema.names)}; it has "
                f"{', '.join(schema.names) or 'no columns'}. Training for {spec.target} needs "
                f"{', '.join((*_TEXTS, TARGETS[spec.target]))}: give a table as `label` writes it"
            )
        kind = schema.field(name).type
        number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)
        if name in _TEXTS and not is_text(kind):
            raise InputError(f"{path}: column {name!r} is {kind}, not string: write it as string")
        if name == TARGETS[spec.target] and not number:
            raise InputError(f"{path}: column {name!r} is {kind}, not numeric: write it as numeric")


def _made(path: Path, schema: pa.Schema) -> dict[str, Any]:
    text = (schema.metadata or {}).get(LABEL_METADATA)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path}: its metadata `routelmt` is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def check_makers(spec: TrainSpec, files: list[TableFile], bars: Bars) -> dict[str, Any]:
    """What the labels say of their making (`metric`, `models`, `prompt`), once they are known to agree.

    Raises:
        ModelError: two metrics, or a small model that is not the base that is trained.
    """
    if mute := [file.path.name for file in files if not file.made.get("metric")]:
        bars.warn(
            f"{len(mute)} of {len(files)} label tables ({', '.join(mute[:3])}) do not say which metric and "
            "models made them: what no table says is `unknown` in the router's card"
        )
    made: dict[str, Any] = {}
    for file in files:
        for key in ("metric", "models", "prompt"):
            value = file.made.get(key)
            _refuse_other(key, file, made.get(key), value)
            made.setdefault(key, value) if value else None
    made.setdefault("metric", _UNKNOWN)
    made.setdefault("models", {})
    if spec.base.architecture == "decoder":
        _check_small(spec, made["models"].get("small"))
    template = made.get("prompt", {}).get("template", spec.prompt.template)
    if template != spec.prompt.template:
        bars.warn(
            f"the labels were made with the prompt {json.dumps(template)}, and prompt.template is "
            f"{json.dumps(spec.prompt.template)}"
        )
    return made


def _refuse_other(key: str, file: TableFile, before: Any, now: Any) -> None:
    def telling(value: Any) -> Any:
        """Of models only the weights count, not under which name they were read."""
        return {role: model.get("weights") for role, model in value.items()} if key == "models" else value

    if before and now and key != "prompt" and telling(before) != telling(now):
        raise ModelError(
            f"{file.path}: labelled with {key} {json.dumps(now, sort_keys=True)}, and another table with "
            f"{json.dumps(before, sort_keys=True)}. Such labels do not mix: train on one kind"
        )


def _check_small(spec: TrainSpec, small: dict[str, Any] | None) -> None:
    weights = checkpoints.weights_hash(spec.base.source)
    if small and small.get("weights") not in (None, weights):
        raise ModelError(
            f"base.source {spec.base.source}: its weights ({weights[:12]}) are not those of the small model "
            f"that made the labels ({small.get('source')}, {small['weights'][:12]}). Its router would learn "
            "another model's gains: give that model, or label anew with this one"
        )


def read_rows(spec: TrainSpec, files: list[TableFile], bars: Bars) -> pa.Table:
    """Usable rows in file order: `source`, `source_lang`, `target_lang`, `target` float64 and `side`.

    Rows without a usable target, text or language are left out with a warning that counts them, and so
    are rows of `tables` whose split value stands in `test_tables`, too.
    """
    table = pa.concat_tables([_read(spec, file) for file in files])
    for reason, keep in _rules(spec):
        table = _leave_out(table, keep(table), reason, bars)
    groups, held_out = table["group"].to_pylist(), table["held_out"].to_pylist()
    tested = {group for group, held in zip(groups, held_out, strict=True) if held}
    clash = [not held and group in tested for group, held in zip(groups, held_out, strict=True)]
    table = _leave_out(
        table, pc.invert(pa.array(clash, pa.bool_())), f"their {spec.split.by} is in test_tables, too", bars
    )
    test = Decimal(0) if spec.test_tables else spec.split.test_fraction
    drawn = sides(table["group"].to_pylist(), spec.split.seed, spec.split.validation_fraction, test)
    side = [TEST if held else name for name, held in zip(drawn, table["held_out"].to_pylist(), strict=True)]
    return table.drop(["group", "held_out"]).append_column("side", pa.array(side, pa.string()))


def _read(spec: TrainSpec, file: TableFile) -> pa.Table:
    target = TARGETS[spec.target]
    table = pq.read_table(
        file.path, columns=list(dict.fromkeys((*_TEXTS, target, spec.split.by))), partitioning=None
    )
    return pa.table(
        {
            **{name: table[name].cast(pa.string()) for name in _TEXTS},
            "target": table[target].cast(pa.float64()),
            "group": table[spec.split.by].cast(pa.string()),
            "held_out": pa.array([file.held_out] * table.num_rows, pa.bool_()),
        }
    )


def _rules(spec: TrainSpec) -> Iterable[tuple[str, Callable[[pa.Table], Any]]]:
    known = pa.array(LANGUAGES)
    return (
        (f"{TARGETS[spec.target]} is null, NaN or infinite", lambda rows: pc.is_finite(rows["target"])),
        ("no text", lambda rows: pc.not_equal(pc.utf8_trim_whitespace(rows["source"]), "")),
        (
            "a language that is not one of LMT's 60 codes",
            lambda rows: pc.and_(pc.is_in(rows["source_lang"], known), pc.is_in(rows["target_lang"], known)),
        ),
        (f"{spec.split.by} is null", lambda rows: pc.is_valid(rows["group"])),
    )


def _leave_out(table: pa.Table, keep: Any, reason: str, bars: Bars) -> pa.Table:
    kept = table.filter(pc.fill_null(keep, False))
    if lost := table.num_rows - kept.num_rows:
        bars.warn(f"{lost:,} of {table.num_rows:,} label rows left out: {reason}")
    return kept
