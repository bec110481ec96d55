"""Requests: the rows sent to an engine, as texts or as the columns that a scorer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from routelmt_batch.corpus.units import Lines, Unit, read_lines
from routelmt_batch.engines.lanes import REQUESTS, Mask
from routelmt_batch.prompts import LANGUAGES
from routelmt_batch.rows import EMPTY, NO_REFERENCE, NULL, UNKNOWN_LANGUAGE
from routelmt_batch.spec import Input
from routelmt_batch.stages.work import UnitWork


def requests(
    lines: Lines, shard: str, keep: Sequence[bool] | None = None, needs: Sequence[str] = ()
) -> pa.Table:
    """REQUESTS for some lines of a shard (all, or those in `keep`), with the reason if a row is skipped.

    With `needs=("reference",)` a row without a reference is skipped too.
    """
    wanted = [i for i in range(len(lines.rows)) if keep is None or keep[i]]
    columns = (lines.rows, lines.texts, lines.source_langs, lines.target_langs)
    rows, texts, source_langs, target_langs = ([values[i] for i in wanted] for values in columns)
    skips = [_skip(lines, i, needs) for i in wanted]
    return pa.table([[shard] * len(rows), rows, skips, texts, source_langs, target_langs], schema=REQUESTS)


@dataclass(frozen=True)
class PromptReader:
    """Reads texts and languages of the wanted rows of a unit."""

    input: Input
    needs: tuple[str, ...] = ()

    def __call__(self, work: UnitWork, wanted: Mask) -> Iterator[pa.Table]:
        unit = work.unit
        for lines in read_lines(unit, self.input, self.needs):
            keep = wanted[np.array(lines.rows) - unit.first_row].tolist()
            if any(keep):
                yield requests(lines, unit.shard.name, keep, self.needs)


def column_requests(
    unit: Unit, rows: Sequence[int], columns: Mapping[str, pa.Array], skips: Sequence[str] | None = None
) -> pa.Table:
    """Requests with the columns that a scorer reads instead of those of REQUESTS."""
    table = {
        "shard": pa.array([unit.shard.name] * len(rows), pa.string()),
        "row": pa.array(rows, pa.int64()),
        "skip": pa.array(skips if skips is not None else [""] * len(rows), pa.string()),
    }
    return pa.table({**table, **columns})


def _skip(lines: Lines, i: int, needs: Sequence[str]) -> str:
    text = lines.texts[i]
    if text is None:
        return NULL
    if not text.strip():
        return EMPTY
    if lines.source_langs[i] not in LANGUAGES or lines.target_langs[i] not in LANGUAGES:
        return UNKNOWN_LANGUAGE
    if "reference" in needs and not lines.references[i]:
        return NO_REFERENCE
    return ""
