"""Requests: rows on their way to an engine, as prompts or as columns that a scorer reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from routelmt_batch.engines.lanes import REQUESTS, Mask
from routelmt_batch.ledger import read_rows
from routelmt_batch.prompts import LANGUAGES, Prompter
from routelmt_batch.rows import EMPTY, NO_REFERENCE, NULL, TOO_LONG, UNKNOWN_LANGUAGE
from routelmt_batch.spec import Input
from routelmt_batch.stages.passes import OfUnit
from routelmt_batch.units import Lines, Unit, read_lines


def requests(
    lines: Lines,
    shard: str,
    prompter: Prompter | None,
    limit_tokens: int,
    keep: Sequence[bool] | None = None,
    needs: Sequence[str] = (),
) -> pa.Table:
    """REQUESTS for some lines of a shard: token ids, or the reason why a row is not for an engine.

    Without a prompter there are no tokens, and no row is too long. `needs=("reference",)`: a row
    without a reference is not for an engine either.
    """
    wanted = [i for i in range(len(lines.rows)) if keep is None or keep[i]]
    skips = [_skip(lines, i, needs) for i in wanted]
    good = [i for i, skip in zip(wanted, skips, strict=True) if not skip]
    tokens = iter(_tokens(lines, good, prompter))
    prompts = [[] if skip else next(tokens) for skip in skips]
    lengths = [
        None if skip or not prompter else len(prompt) for skip, prompt in zip(skips, prompts, strict=True)
    ]
    for i, length in enumerate(lengths):
        if length is not None and length > limit_tokens:
            skips[i], prompts[i] = TOO_LONG, []
    return pa.table(
        {
            "shard": [shard] * len(wanted),
            "row": [lines.rows[i] for i in wanted],
            "prompt_tokens": lengths,
            "tokenized_prompt": prompts,
            "skip": skips,
        },
        schema=REQUESTS,
    )


@dataclass(frozen=True)
class PromptReader:
    """Emits the prompts of the rows of a unit that are `wanted`; with `texts` for a scorer, which reads more
    than token ids."""

    input: Input
    prompter: Prompter | None
    limit_tokens: int
    wanted: Callable[[Any], Mask]
    needs: tuple[str, ...] = ()
    texts: bool = False

    def __call__(self, work: OfUnit) -> Iterator[pa.Table]:
        unit, wanted = work.unit, self.wanted(work)
        for lines in read_lines(unit, self.input, self.needs) if wanted.any() else ():
            keep = wanted[np.array(lines.rows) - unit.first_row].tolist()
            if any(keep):
                table = requests(lines, unit.shard.name, self.prompter, self.limit_tokens, keep, self.needs)
                yield with_texts(table, lines) if self.texts else table


def not_in(parts: Sequence[str], unit: Unit, schema: pa.Schema) -> Mask:
    """Rows of a unit that no part holds."""
    mask = np.ones(unit.rows, bool)
    held = read_rows(parts, unit.shard.name, unit.first_row, unit.end_row, schema)["row"]
    mask[held.to_numpy() - unit.first_row] = False
    return mask


def blank_requests(
    unit: Unit, rows: Sequence[int], columns: Mapping[str, pa.Array], skips: Sequence[str] | None = None
) -> pa.Table:
    """REQUESTS without prompts, for a scorer that reads the columns beside them."""
    table = pa.table(
        {
            "shard": [unit.shard.name] * len(rows),
            "row": rows,
            "prompt_tokens": pa.nulls(len(rows), pa.int32()),
            "tokenized_prompt": [[]] * len(rows),
            "skip": skips if skips is not None else [""] * len(rows),
        },
        schema=REQUESTS,
    )
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def with_texts(table: pa.Table, lines: Lines) -> pa.Table:
    """REQUESTS with the text and languages beside them, for a scorer that reads those."""
    place = {row: i for i, row in enumerate(lines.rows)}
    at = [place[row] for row in table["row"].to_pylist()]
    for name, values in (
        ("source", lines.texts),
        ("source_lang", lines.source_langs),
        ("target_lang", lines.target_langs),
    ):
        table = table.append_column(name, pa.array([values[i] for i in at], pa.string()))
    return table


def _tokens(lines: Lines, places: Sequence[int], prompter: Prompter | None) -> list[list[int]]:
    if prompter is None:
        return [[] for _ in places]
    return prompter.token_ids(
        *(
            [values[i] or "" for i in places]
            for values in (lines.texts, lines.source_langs, lines.target_langs)
        )
    )


def _skip(lines: Lines, i: int, needs: Sequence[str]) -> str:
    text = lines.texts[i]
    if text is None:
        return NULL
    if not text.strip():
        return EMPTY
    if lines.source_langs[i] not in LANGUAGES or lines.target_langs[i] not in LANGUAGES:
        return UNKNOWN_LANGUAGE
    if "reference" in needs and not (lines.references[i] or "").strip():
        return NO_REFERENCE
    return ""
