"""Language codes of a corpus as they are written: which are understood, which are not, and how often.

It reads the columns of codes alone, so it takes little time beside reading the texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from routelmt_batch.corpus.shards import text_columns
from routelmt_batch.corpus.units import Unit, codes, groups, read_unit
from routelmt_batch.languages import UNKNOWN, direction, is_code, nearest, understood
from routelmt_batch.progress import counted
from routelmt_batch.spec import Texts
from routelmt_batch.threads import Each, Stop, each

NO_CODE = "(none)"
OTHER = "(other)"  # no codes, which may be corpus text, and codes beyond the first hundred
MOST_CODES = 100
_SHOWN = 5


@dataclass
class Codes:
    """Counts of some rows' language codes.

    Args:
        unknown_rows: rows with a code that is not understood.
        spelled: by LMT's code, how often it is written in which other way.
        unknown: how often each code occurs that is not understood.
        directions: rows of each direction, `en-de`.
    """

    rows: int = 0
    unknown_rows: int = 0
    spelled: dict[str, Counter[str]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    directions: Counter[str] = field(default_factory=Counter)

    def add(self, source_lang: str | None, target_lang: str | None, rows: int) -> None:
        """Count rows with these codes, as they are written."""
        pair = direction(source_lang, target_lang)
        self.rows += rows
        self.directions[pair] += rows
        self.unknown_rows += rows * (UNKNOWN in pair.split("-"))
        for code in (source_lang, target_lang):
            known = understood(code) if code else None
            if known is None:
                self._lacks(code, rows)
            elif known != code:
                self.spelled.setdefault(known, Counter())[str(code)] += rows

    def _lacks(self, code: str | None, rows: int) -> None:
        name = (code if is_code(code.strip()) else OTHER) if code and code.strip() else NO_CODE
        self.unknown[name if name in self.unknown or len(self.unknown) < MOST_CODES else OTHER] += rows

    def update(self, other: Codes) -> None:
        self.rows += other.rows
        self.unknown_rows += other.unknown_rows
        self.directions.update(other.directions)
        for known, spellings in other.spelled.items():
            self.spelled.setdefault(known, Counter()).update(spellings)
        for code, rows in other.unknown.items():
            self._lacks(None if code == NO_CODE else code, rows)

    def report(self) -> dict[str, Any]:
        """Spellings and unknown codes with their counts, the most frequent first."""
        return {
            "spelled": {known: dict(found.most_common()) for known, found in sorted(self.spelled.items())},
            "unknown": dict(self.unknown.most_common()),
        }


def count_codes(units: Iterable[Unit], texts: Texts, spread: Each = each) -> Codes:
    """Count the codes of some units' rows. Nothing is read if both languages are constants.

    Raises:
        InputChanged, RoutelmtError: see units.read_unit.
    """
    found = Codes()
    if texts.source_lang is not None and texts.target_lang is not None:
        found.add(texts.source_lang, texts.target_lang, sum(unit.rows for unit in units))
        return found
    with spread(_Counting(texts), groups(units, lambda unit: unit)) as parts:
        for part in parts:
            found.update(part)
    return found


@dataclass(frozen=True)
class _Counting:
    """Counts the codes of units, in a task."""

    texts: Texts

    def __call__(self, units: Sequence[Unit], stop: Stop) -> Codes:
        columns = [name for key, name in text_columns(self.texts).items() if key != "source"]
        found = Codes()
        for unit in units:
            for _, batch in read_unit(unit, columns):
                stop()
                table = pa.table(list(codes(batch, self.texts)), ["source", "target"])
                pairs = table.group_by(["source", "target"]).aggregate([([], "count_all")])
                for pair in pairs.to_pylist():
                    found.add(pair["source"], pair["target"], pair["count_all"])
        return found


def in_words(unknown: Mapping[str, int]) -> str:
    """The most frequent codes that are not understood, each with its count and the nearest code."""
    most = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{_name(code)} {counted(rows, 'time')}{_hint(code)}" for code, rows in most[:_SHOWN]]
    if len(most) > _SHOWN:
        shown.append(f"{len(most) - _SHOWN} others")
    return "; ".join(shown)


def _hint(code: str) -> str:
    return f" (nearest: {found!r})" if (found := nearest(code)) else ""


def _name(code: str) -> str:
    words = {NO_CODE: "no code", OTHER: "text that is no code"}
    return words.get(code) or repr(code)
