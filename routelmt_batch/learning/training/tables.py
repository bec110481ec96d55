"""Reads label tables for a training: finds files, checks what made them, and selects the usable rows.

It knows columns and targets, but no models and no tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.shards import is_text, text_columns
from routelmt_batch.corpus.units import languages
from routelmt_batch.errors import InputError, ModelError
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.files.write import sha256
from routelmt_batch.learning.gains import (
    GAIN_BY_REFERENCE,
    QUALITY_SMALL,
    OtherGains,
    check_gains,
    gain_columns,
    gain_of,
    given_gain,
    is_number,
)
from routelmt_batch.learning.labels import LabelTable, Model, Signature, find, texts_of
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.learning.training.split import TEST, sides
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import LANGUAGES
from routelmt_batch.spec import Texts, near
from routelmt_batch.store import checkpoints


@dataclass(frozen=True)
class TableFile(LabelTable):
    """One Parquet file of labels and its hash; `held_out` if it is one of `test_tables`."""

    sha256: str
    held_out: bool


def find_tables(spec: TrainSpec) -> list[TableFile]:
    """Find every file of the label tables, `test_tables` last, and check its columns.

    Raises:
        InputError: a file is missing, given twice or not readable; a column is missing; or tables have text
            and languages in different places.
    """
    found = [
        TableFile(**vars(table), sha256=sha256(table.path), held_out=key == "test_tables")
        for key, uris in (("tables", spec.tables), ("test_tables", spec.test_tables))
        for table in find(uris, key)
    ]
    texts = texts_of(found)
    for file in found:
        _check_columns(file, texts, spec)
    count = Counter(file.sha256 for file in found)
    if twice := [str(file.path) for file in found if count[file.sha256] > 1]:
        names = ", ".join(twice)
        raise InputError(
            f"{names}: these files hold the same rows, which would count twice: give one of them"
        )
    return found


def _check_columns(file: TableFile, texts: Texts, spec: TrainSpec) -> None:
    path, schema, by = file.path, file.schema, _split_column(texts, spec)
    text, target = tuple(text_columns(texts).values()), _target_columns(schema, spec)
    for name in dict.fromkeys((*text, *target, by)):
        why = " (split.by)" if name == by and name not in text else ""
        if name not in schema.names:
            raise InputError(
                f"{path}: no column {name!r}{why}{near(name, schema.names)}; it has "
                f"{', '.join(schema.names) or 'no columns'}. Training for {spec.target} needs "
                f"{', '.join((*text, *target))}: give a table as `label` writes it"
            )
        kind = schema.field(name).type
        if name in text and not is_text(kind):
            raise InputError(f"{path}: column {name!r} is {kind}, not string: write it as string")
        if name in target and not is_number(kind):
            raise InputError(f"{path}: column {name!r} is {kind}, not numeric: write it as numeric")
    check_gains(path, schema)


def _target_columns(schema: pa.Schema, spec: TrainSpec) -> tuple[str, ...]:
    return gain_columns(schema.names) if spec.target == "gain" else (QUALITY_SMALL,)


def _split_column(texts: Texts, spec: TrainSpec) -> str:
    """The column of `split.by` in the tables: `source` is the source text, whatever its column's name."""
    return text_columns(texts).get(spec.split.by, spec.split.by)


def check_makers(spec: TrainSpec, files: list[TableFile], bars: Bars) -> Signature | None:
    """Check that the tables were made alike. Returns what made them; None if no table has a signature.

    Raises:
        ModelError: metrics or models differ, or the small model is not the base that is trained.
    """
    if unsigned := [file.path.name for file in files if not file.signature]:
        bars.warn(
            f"{len(unsigned)} of {len(files)} label tables ({', '.join(unsigned[:3])}) do not say which "
            "metric and models made them. If no table says it, the router's card has `unknown`"
        )
    signed = [(file, file.signature) for file in files if file.signature]
    if not signed:
        return None
    (first, made), *others = signed
    for file, other in others:
        for key, value in _shared(other).items():
            if value != _shared(made)[key]:
                raise ModelError(
                    f"{file.path}: labelled with {key} {json.dumps(value)}, and {first.path} with "
                    f"{json.dumps(_shared(made)[key])}. Such labels cannot be mixed: train on one kind"
                )
    if spec.base.architecture == "decoder":
        _check_small(spec, made.models.small)
    template = made.prompt.template
    if template != spec.prompt.template:
        bars.warn(
            f"the labels were made with the prompt {json.dumps(template)}, and prompt.template is "
            f"{json.dumps(spec.prompt.template)}"
        )
    return made


def _shared(made: Signature) -> dict[str, Any]:
    """What all labels must share. Models are compared by their weights, not by their names."""
    models = {"small": made.models.small.weights, "large": made.models.large.weights}
    return {"metric": made.metric.model_dump(), "models": models}


def _check_small(spec: TrainSpec, small: Model) -> None:
    weights = checkpoints.weights_hash(spec.base.source)
    if small.weights != weights:
        raise ModelError(
            f"base.source {spec.base.source}: its weights ({weights[:12]}) are not those of the small model "
            f"that made the labels ({small.source}, {small.weights[:12]}). Its router would learn "
            "another model's gains: give that model, or label again with this one"
        )


def read_rows(spec: TrainSpec, files: list[TableFile], bars: Bars) -> pa.Table:
    """Usable rows in file order: `source`, `source_lang`, `target_lang`, `target` float64, `references` int64
    and `side`.

    A gain is computed from the qualities; the `gain` column is read if a table lacks one.
    Rows without a usable target, text or language are left out with a warning that counts them, and so
    are rows of `tables` whose split value is also in `test_tables`.
    """
    texts, other_gains = texts_of(files), OtherGains()
    table = pa.concat_tables([_read(spec, texts, file, other_gains) for file in files])
    for warning in other_gains.warnings():
        bars.warn(warning)
    for reason, keep in _rules(spec):
        table = _leave_out(table, keep(table), reason, bars)
    groups, held_out = table["group"].to_pylist(), table["held_out"].to_pylist()
    tested = {group for group, held in zip(groups, held_out, strict=True) if held}
    clash = [not held and group in tested for group, held in zip(groups, held_out, strict=True)]
    table = _leave_out(
        table, pc.invert(pa.array(clash, pa.bool_())), f"their {spec.split.by} is also in test_tables", bars
    )
    test = Decimal(0) if spec.test_tables else spec.split.test_fraction
    drawn = sides(table["group"].to_pylist(), spec.split.seed, spec.split.validation_fraction, test)
    side = [TEST if held else name for name, held in zip(drawn, table["held_out"].to_pylist(), strict=True)]
    return table.drop(["group", "held_out"]).append_column("side", pa.array(side, pa.string()))


def _read(spec: TrainSpec, texts: Texts, file: TableFile, other_gains: OtherGains) -> pa.Table:
    targets, by = _target_columns(file.schema, spec), _split_column(texts, spec)
    given = given_gain(file.schema) if spec.target == "gain" else ()
    by_reference = (GAIN_BY_REFERENCE,) if GAIN_BY_REFERENCE in file.schema.names else ()
    columns = dict.fromkeys((*text_columns(texts).values(), *targets, *given, *by_reference, by))
    with parquet_file(file.path) as source:
        table = source.read(list(columns))
    first, *second = (table[name].cast(pa.float64()) for name in targets)
    target = gain_of(first.to_numpy(), second[0].to_numpy()) if second else first.to_numpy()
    for name in given:
        other_gains.add(table[name].cast(pa.float64()).to_numpy(), target)
    source_lang, target_lang = languages(table, texts)
    return pa.table(
        {
            "source": table[texts.columns.source].cast(pa.string()),
            "source_lang": source_lang,
            "target_lang": target_lang,
            "target": target,
            "references": _references(table),
            "group": table[by].cast(pa.string()),
            "held_out": pa.array([file.held_out] * table.num_rows, pa.bool_()),
        }
    )


def _references(table: pa.Table) -> pa.Array:
    """How many references stand behind each row; 1 where the table does not say it."""
    if GAIN_BY_REFERENCE not in table.column_names:
        return pa.repeat(1, table.num_rows)
    lists = table[GAIN_BY_REFERENCE].cast(pa.list_(pa.float64()))
    counts = pc.list_value_length(lists).cast(pa.int64())
    return pc.max_element_wise(counts, 1)  # a row that a metric without references measured has null


def _rules(spec: TrainSpec) -> Iterable[tuple[str, Callable[[pa.Table], Any]]]:
    known = pa.array(LANGUAGES)
    return (
        (f"{spec.target} is null, NaN or infinite", lambda rows: pc.is_finite(rows["target"])),
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
