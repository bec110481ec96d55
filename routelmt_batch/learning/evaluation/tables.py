"""Reads label tables into arrays: both models' measured quality, row by row.

It knows Parquet and columns, not what is computed from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.corpus.shards import is_text, text_columns
from routelmt_batch.corpus.units import languages
from routelmt_batch.errors import InputError, UsageError
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import parquet_file
from routelmt_batch.learning.evaluation.references import References, reference_columns
from routelmt_batch.learning.gains import GAIN, Halves, OtherGains, gain_of, given_gain, halves, is_number
from routelmt_batch.learning.gains import QUALITY_LARGE as LARGE
from routelmt_batch.learning.gains import QUALITY_SMALL as SMALL
from routelmt_batch.learning.labels import LabelTable, find, reference_column, texts_of, unreadable
from routelmt_batch.spec import Texts, near
from routelmt_batch.stats.measures import Floats

UNKNOWN = "?"  # stands for a language that a row does not name
_BATCH_ROWS = 131_072


@dataclass(frozen=True)
class Labels:
    """The rows with both qualities, in the order read.

    `direction` holds indexes into `directions` ("en-de"), -1 throughout if the tables name no
    languages. `scores` holds the requested score columns, NaN where a row has none. `kept` has a
    value for every row read: whether it is one of these rows. `halves` has two gains for each source with
    several references; its `of` are the sources' first rows.
    """

    quality_small: Floats
    quality_large: Floats
    direction: npt.NDArray[np.int32]
    directions: tuple[str, ...]
    scores: dict[str, Floats]
    kept: npt.NDArray[np.bool_]
    warnings: list[str]
    halves: Halves = field(default_factory=lambda: halves(np.zeros(0), np.zeros(0, np.int64)))

    @property
    def gain(self) -> Floats:
        return gain_of(self.quality_large, self.quality_small)


def read_tables(paths: Sequence[Path | str], score_columns: Sequence[str] = ()) -> Labels:
    """Read label tables as one, in the order given; files of a folder or glob in name order.

    Raises:
        UsageError: no path is given.
        InputError: a file is missing, given twice or unreadable; tables have their languages in different
            places; a column is missing or not numeric; fewer than two rows have both qualities.
    """
    if not paths:
        raise UsageError("no label table is given: name a Parquet file, a folder or a glob")
    tables = find([str(path) for path in paths])
    _refuse_twice(tables)
    texts = texts_of(tables)
    # A table says how it was made; it names no column if the metric read no references.
    column = texts.columns.reference if tables[0].signature else reference_column(texts)
    gathered = _Gathered(tuple(dict.fromkeys(score_columns)), texts, References(texts, column))
    for table in tables:
        columns = _check(table, gathered.texts, gathered.score_columns)
        for batch in _batches(table.path, columns):
            gathered.add(batch)
    return gathered.labels()


def _batches(path: Location, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with parquet_file(path) as file:
            yield from file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, error) from error


def _refuse_twice(tables: Sequence[LabelTable]) -> None:
    seen: set[Location] = set()
    for table in tables:
        if table.path.canonical() in seen:
            raise InputError(f"{table.path}: given twice, so its rows would count twice; give it once")
        seen.add(table.path.canonical())


def _language_columns(texts: Texts) -> list[str]:
    return [column for key, column in text_columns(texts).items() if key != "source"]


def _check(table: LabelTable, texts: Texts, score_columns: Sequence[str]) -> list[str]:
    """Check that one file has the needed columns, in fitting types. Returns those to read."""
    file, schema = table.path, table.schema
    for name in (SMALL, LARGE, *score_columns):
        if name not in schema.names:
            raise InputError(
                f"{file}: no column {name!r}{near(name, schema.names)}; it has "
                f"{', '.join(schema.names) or 'no columns'}. A label table has {SMALL} and {LARGE}, "
                "and every column that --scores, --guard or --verify names"
            )
    columns = [SMALL, LARGE, *score_columns, *given_gain(schema)]
    language_columns = _language_columns(texts)
    if all(name in schema.names for name in language_columns):
        columns.extend(language_columns)
    found = list(dict.fromkeys([*columns, *reference_columns(file, schema, texts)]))
    for name in found:
        if schema.names.count(name) > 1:
            raise InputError(f"{file}: has two columns named {name!r}: rename one")
    for name in columns:
        kind = schema.field(name).type
        fits, wanted = (is_text(kind), "string") if name in language_columns else (is_number(kind), "numeric")
        if not fits:
            raise InputError(f"{file}: column {name!r} is {kind}, not {wanted}: write it as {wanted}")
    return found


@dataclass
class _Gathered:
    """The rows read so far: kept ones as arrays, and counts of dropped rows and differing gains."""

    score_columns: tuple[str, ...]
    texts: Texts
    references: References
    small: list[Floats] = field(default_factory=list)
    large: list[Floats] = field(default_factory=list)
    scores: list[list[Floats]] = field(default_factory=list)
    kept: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    direction: list[npt.NDArray[np.int32]] = field(default_factory=list)
    directions: dict[str, int] = field(default_factory=dict)
    languages_named: bool = False
    dropped: dict[str, int] = field(default_factory=lambda: {"null": 0, "NaN": 0, "infinite": 0})
    other_gains: OtherGains = field(default_factory=OtherGains)

    def add(self, batch: pa.RecordBatch) -> None:
        small, large = _floats(batch, SMALL), _floats(batch, LARGE)
        null = _nulls(batch, SMALL) | _nulls(batch, LARGE)
        nan = ~null & (np.isnan(small) | np.isnan(large))
        infinite = ~null & ~nan & ~(np.isfinite(small) & np.isfinite(large))
        for reason, mask in (("null", null), ("NaN", nan), ("infinite", infinite)):
            self.dropped[reason] += int(mask.sum())
        kept = ~(null | nan | infinite)
        self.kept.append(kept)
        self.small.append(small[kept])
        self.large.append(large[kept])
        self.scores.append([_floats(batch, name)[kept] for name in self.score_columns])
        self.direction.append(self._directions(batch)[kept])
        gain = gain_of(large[kept], small[kept])
        self.references.add(batch.filter(pa.array(kept)), gain, self.direction[-1])
        if GAIN in batch.schema.names:
            self.other_gains.add(_floats(batch, GAIN)[kept], gain)

    def _directions(self, batch: pa.RecordBatch) -> npt.NDArray[np.int32]:
        if all(name in batch.schema.names for name in _language_columns(self.texts)):
            self.languages_named = True
            source, target = (pc.fill_null(codes, UNKNOWN) for codes in languages(batch, self.texts))
            names = pc.binary_join_element_wise(source, target, "-").dictionary_encode()
        else:
            names = pa.array([f"{UNKNOWN}-{UNKNOWN}"] * batch.num_rows, pa.string()).dictionary_encode()
        index = [
            self.directions.setdefault(name, len(self.directions)) for name in names.dictionary.to_pylist()
        ]
        found: npt.NDArray[np.int32] = np.array(index, np.int32)[names.indices.to_numpy()]
        return found

    def labels(self) -> Labels:
        kept = np.concatenate(self.kept or [np.zeros(0, bool)])
        rows = int(kept.sum())
        if rows < 2:
            dropped = f" (dropped: {self._reasons()})" if rows < len(kept) else ""
            raise InputError(
                f"{rows} of {len(kept)} rows have both {SMALL} and {LARGE}{dropped}: a comparison needs "
                "at least two rows; check how the table was labelled"
            )
        direction, directions = self._in_name_order()
        columns = zip(*self.scores, strict=True)
        return Labels(
            quality_small=np.concatenate(self.small),
            quality_large=np.concatenate(self.large),
            direction=direction,
            directions=directions,
            scores={
                name: np.concatenate(parts) for name, parts in zip(self.score_columns, columns, strict=True)
            },
            kept=kept,
            warnings=self._warnings(rows, len(kept), direction, directions),
            halves=self.references.halves(),
        )

    def _in_name_order(self) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
        """Directions of the kept rows, sorted by name, so that the order of files and rows has no effect."""
        direction = np.concatenate(self.direction)
        if not self.languages_named:
            return np.full(len(direction), -1, np.int32), ()
        present = np.unique(direction)
        names = {name: index for name, index in self.directions.items() if index in present}
        ordered = tuple(sorted(names, key=str.encode))
        place: npt.NDArray[np.int32] = np.full(len(self.directions), -1, np.int32)
        for new, name in enumerate(ordered):
            place[names[name]] = new
        return place[direction], ordered

    def _reasons(self) -> str:
        return ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items() if count)

    def _warnings(
        self, rows: int, read: int, direction: npt.NDArray[np.int32], directions: tuple[str, ...]
    ) -> list[str]:
        warnings = []
        if rows < read:
            warnings.append(
                f"{read - rows:,} of {read:,} rows dropped because of their quality: {self._reasons()}"
            )
        warnings.extend([*self.other_gains.warnings(), *self.references.other_gains.warnings()])
        unknown = [place for place, name in enumerate(directions) if UNKNOWN in name.split("-")]
        if unknown:
            count = int(np.isin(direction, unknown).sum())
            warnings.append(f"{count:,} rows do not name both languages; these count as {UNKNOWN!r}")
        return warnings


def _nulls(batch: pa.RecordBatch, name: str) -> npt.NDArray[np.bool_]:
    return np.asarray(batch[name].is_null().to_numpy(zero_copy_only=False), bool)


def _floats(batch: pa.RecordBatch, name: str) -> Floats:
    column = pc.cast(batch[name], pa.float64(), safe=False)
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64)
