"""Rows that are skipped: a job that could translate almost nothing ends before it costs anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from routelmt_batch.corpus.codes import Codes, count_codes, in_words
from routelmt_batch.corpus.units import Unit
from routelmt_batch.errors import InputError
from routelmt_batch.progress import Bars, counted
from routelmt_batch.rows import UNTRANSLATABLE
from routelmt_batch.spec import PassSpec
from routelmt_batch.store.workspace import AnyWorkspace
from routelmt_batch.threads import Each, each

_NEXT = "raise run.max_skipped_fraction if this is as it should be"


def check_codes(spec: PassSpec, units: Iterable[Unit], bars: Bars, spread: Each = each) -> Codes:
    """Count the corpus's language codes, and warn of those that are not LMT's.

    Args:
        spread: reads the columns of codes; by default in this process's threads.

    Raises:
        InputError: more rows than `run.max_skipped_fraction` allows have a code that is not understood.
    """
    found = count_codes(units, spec.input, spread)
    if found.spelled:
        bars.warn(f"language codes that are spelled otherwise: {_spelled(found.spelled)}")
    if not found.unknown:
        return found
    words = in_words(found.unknown)
    if _is_too_much(found.unknown_rows, found.rows, spec):
        raise InputError(
            f"input: {found.unknown_rows:,} of {found.rows:,} rows have a language code that is not among "
            f"LMT's 60, more than run.max_skipped_fraction {spec.run.max_skipped_fraction} allows: {words}. "
            "Correct the codes, name the right columns (input.columns) or give constants (input.source_lang, "
            f"input.target_lang), or {_NEXT}"
        )
    bars.warn(
        f"{found.unknown_rows:,} of {found.rows:,} rows will be skipped: unknown language codes: {words}"
    )
    return found


def refuse_skipped(workspace: AnyWorkspace, unanswered: Mapping[str, int], rows: int) -> None:
    """Raises InputError if more of `rows` than `run.max_skipped_fraction` allows were skipped; `unanswered`
    counts rows by reason."""
    skipped = {reason: count for reason, count in unanswered.items() if reason in UNTRANSLATABLE}
    if _is_too_much(sum(skipped.values()), rows, workspace.spec):
        by_reason = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
        raise InputError(
            f"{sum(skipped.values()):,} of {rows:,} rows are skipped, more than run.max_skipped_fraction "
            f"{workspace.spec.run.max_skipped_fraction} allows: {by_reason}. Correct the input and start a "
            f"new job with another --output, or {_NEXT} and run the same command again"
        )


def _is_too_much(skipped: int, rows: int, spec: PassSpec) -> bool:
    return skipped > spec.run.max_skipped_fraction * rows


def _spelled(spelled: Mapping[str, Mapping[str, int]]) -> str:
    """`'EN' 50 times, read as en`; the most frequent first."""
    found = [
        (count, code, known) for known, spellings in spelled.items() for code, count in spellings.items()
    ]
    shown = [
        f"{code!r} {counted(count, 'time')}, read as {known}"
        for count, code, known in sorted(found, key=_frequent)[:5]
    ]
    return "; ".join([*shown, *([f"{len(found) - 5} others"] if len(found) > 5 else [])])


def _frequent(line: tuple[int, str, str]) -> tuple[int, str]:
    return -line[0], line[1]
