"""Finds label tables: their files, what made the labels, and where rows have text and languages.

It reads footers, not rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from routelmt_batch.corpus.shards import discover, is_text, text_columns
from routelmt_batch.errors import InputError
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.rows import LABEL_METADATA
from routelmt_batch.spec import Texts, near

_REFERENCE = "reference"


class _Part(BaseModel):
    # Further keys, such as those of a metric, are kept.
    model_config = ConfigDict(frozen=True, extra="allow")


class Metric(_Part):
    name: str
    signature: str


class Model(_Part):
    source: str
    weights: str  # checkpoints.weights_hash


class Models(_Part):
    small: Model
    large: Model


class Prompt(_Part):
    template: str


class Signature(_Part):
    """What made the labels of a table, and where its rows have text and languages."""

    metric: Metric
    models: Models
    prompt: Prompt
    generation: dict[str, Any] = {}
    input: Texts = Texts()

    def of_labels(self) -> dict[str, Any]:
        """The part that the labels' values depend on."""
        return self.model_dump(mode="json", exclude={"input"})


def read_signature(schema: pa.Schema) -> Signature | None:
    """The signature in a table's metadata; None if it is missing, broken or from another program."""
    try:
        return Signature.model_validate_json((schema.metadata or {}).get(LABEL_METADATA, b""))
    except ValidationError:
        return None


@dataclass(frozen=True)
class LabelTable:
    """One Parquet file of labels."""

    path: Location
    schema: pa.Schema
    signature: Signature | None

    def rows(self) -> int:
        """Number of rows, from the footer."""
        with parquet_file(self.path) as file:
            return int(file.metadata.num_rows)

    @property
    def texts(self) -> Texts:
        return self.signature.input if self.signature else Texts()


def find(uris: Sequence[str], key: str = "table") -> list[LabelTable]:
    """Every file of the tables, in the order given; files of a folder or glob in name order.

    Raises:
        InputError: a file is missing (the message names the argument `key`) or is not Parquet.
    """
    found = []
    for uri in uris:
        for _, path in discover(uri, key=key):
            schema = _schema(path)
            found.append(LabelTable(path, schema, read_signature(schema)))
    return found


def _schema(path: Location) -> pa.Schema:
    try:
        with parquet_file(path) as file:
            return file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Location, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:300]
    return InputError(f"{path}: not readable as Parquet ({reason}); write it again")


def texts_of(tables: Sequence[LabelTable]) -> Texts:
    """Where the rows of all tables have text and languages; a table without a signature has the defaults.

    Raises:
        InputError: two tables have them in different places.
    """
    first = tables[0]
    for table in tables[1:]:
        if _places(table.texts) != _places(first.texts):
            raise InputError(
                f"{first.path} has {_described(first.texts)}, and {table.path} has "
                f"{_described(table.texts)}. All tables of one command must have the same columns: label "
                "them from inputs with the same columns, or give them one at a time"
            )
    return first.texts


def reference_column(texts: Texts) -> str:
    """The tables' column of references: the one that the label spec named, or `reference`."""
    return texts.columns.reference or _REFERENCE


def check_texts(
    tables: Sequence[LabelTable], columns: Iterable[str], fits: Callable[[pa.DataType], bool] = is_text
) -> None:
    """Raises InputError if a table lacks one of the columns, or if its type does not fit."""
    for table in tables:
        for name in dict.fromkeys(columns):
            if name not in table.schema.names or not fits(table.schema.field(name).type):
                raise InputError(
                    f"{table.path}: no text column {name!r}{near(name, table.schema.names)}; it has "
                    f"{', '.join(table.schema.names) or 'no columns'}. Add or rename the column, or give a "
                    "table as `label` writes it"
                )


def _places(texts: Texts) -> dict[str, str]:
    """Where text and languages come from, by spec key. A column that a constant replaces is left out."""
    constants = {"source_lang": texts.source_lang, "target_lang": texts.target_lang}
    columns = {key: f"in column {name!r}" for key, name in text_columns(texts).items()}
    return columns | {key: f"always {code!r}" for key, code in constants.items() if code is not None}


def _described(texts: Texts) -> str:
    return ", ".join(f"{key} {place}" for key, place in _places(texts).items())


def signatures(tables: Sequence[LabelTable]) -> list[Signature]:
    """The tables' signatures, one for each distinct `of_labels`."""
    distinct: list[Signature] = []
    for table in tables:
        made = table.signature
        if made and made.of_labels() not in [other.of_labels() for other in distinct]:
            distinct.append(made)
    return distinct
