"""Examines every file of a job's log: is it what was written, and does it follow from the one before?

It reads the files one by one and knows what no record means.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from routelmt_batch.errors import WorkChanged
from routelmt_batch.progress import Bars
from routelmt_batch.store.log import NOT_THE_NEXT, Log, Record, Segment
from routelmt_batch.threads import each


@dataclass(frozen=True)
class Flaw:
    """What is wrong with one file of a log.

    Args:
        kept_in: the compacted segment that has its records, too.
        is_copy: it is a compacted segment, and everything that it contains is whole.
    """

    name: str
    wrong: str
    kept_in: str | None = None
    is_copy: bool = False


@dataclass
class _Compacted:
    """A compacted segment, None if it is damaged, while the segments in it are read."""

    first: int
    last: int
    name: str
    segment: Segment | None
    is_same: bool = True  # as the segments read so far
    is_complete: bool = True  # all segments so far are whole
    rest: Iterator[Record] = field(init=False)

    def __post_init__(self) -> None:
        self.rest = iter(self.segment.records if self.segment else ())

    def compare(self, one: Segment) -> None:
        whole = self.segment
        records = [record for record in one.records if record.get("event") != "alive"]
        self.is_same &= records == list(itertools.islice(self.rest, len(records)))
        if whole and one.first == self.first:
            self.is_same &= whole.previous == one.previous
        if whole and one.last == self.last:
            last = (whole.sha256, whole.epoch) == (one.sha256, one.epoch)
            self.is_same &= last and next(self.rest, None) is None

    def flaw(self) -> Flaw | None:
        if self.segment is None:
            return Flaw(self.name, "is damaged: its checksum does not match", is_copy=self.is_complete)
        if self.is_complete and not self.is_same:
            return Flaw(self.name, "does not contain what its segments do", is_copy=True)
        return None


def flaws(log: Log, bars: Bars) -> Iterator[Flaw]:
    """What is wrong with the files of a log. Compacted segments are compared with those that they contain."""
    files = log.files()
    before: Segment | None = None
    compacted: list[_Compacted] = []
    expected = 0

    def missing(end: int) -> Iterator[Flaw]:
        """Segments from the expected one to `end`, together where the same copy has them."""
        borders = {number for copy in compacted for number in (copy.first, copy.last + 1)}
        starts = sorted({expected, end, *(number for number in borders if expected < number < end)})
        for kept_in, spans in itertools.groupby(
            itertools.pairwise(starts), lambda span: _holding(compacted, span[0])
        ):
            (first, after), *further = spans
            others = (further[-1][1] if further else after) - first - 1
            more = f", as are the {others:,} after it" if others else ""
            yield Flaw(f"{first:010d}.jsonl", f"is missing{more}", kept_in)

    with (
        bars.rows("log", len(files), unit="segments") as advance,
        each(lambda name, stop: _read(log, name), files.values()) as segments,
    ):
        for ((first, last), name), segment in zip(files.items(), segments, strict=True):
            advance(1)
            if first < last:
                compacted.append(_Compacted(first, last, name, segment))
                continue
            for lost in missing(first):
                before = None
                _break(compacted)
                yield lost
            yield from _ended(compacted, first)
            expected = first + 1
            if wrong := _wrong(segment, first, before):
                before = None
                yield Flaw(name, wrong, _holding(compacted, first))
                _break(compacted)
                continue
            before = segment
            for copy in compacted:
                assert segment
                copy.compare(segment)
    for lost in missing(max((last for _, last in files), default=-1) + 1):
        _break(compacted)
        yield lost
    yield from _ended(compacted, None)


def _read(log: Log, name: str) -> Segment | None:
    try:
        return log.segment(name)
    except (WorkChanged, FileNotFoundError):
        return None


def _wrong(segment: Segment | None, number: int, before: Segment | None) -> str | None:
    """What is wrong with the segment of a number; `before` is the one before, None if that is not known."""
    if segment is None:
        return "is damaged: its checksum does not match"
    if (segment.first, segment.last) != (number, number):
        return f"holds segment {segment.first:,}, not {number:,}: it was renamed or replaced"
    if (before and not segment.follows(before)) or (number == 0 and segment.previous):
        return NOT_THE_NEXT
    epoch = before.epoch if before else 0 if number == 0 else None
    if epoch is not None and segment.epoch != epoch:
        begun = {"event": "epoch", "epoch": epoch + 1, "after": number - 1}
        if segment.epoch != epoch + 1 or segment.records[:1] != (begun,):
            return f"is of run {segment.epoch:,}, which did not take the job"
    return None


def _holding(compacted: list[_Compacted], number: int) -> str | None:
    """The whole compacted segment that holds a number."""
    return next((copy.name for copy in compacted if copy.segment and copy.first <= number <= copy.last), None)


def _break(compacted: list[_Compacted]) -> None:
    """Note that a segment is not whole, so that what contains it cannot be compared."""
    for copy in compacted:
        copy.is_complete = False


def _ended(compacted: list[_Compacted], number: int | None) -> Iterator[Flaw]:
    """Flaws of the compacted segments that end before a number, which are then done; of all if it is None."""
    for copy in [copy for copy in compacted if number is None or copy.last < number]:
        compacted.remove(copy)
        if flaw := copy.flaw():
            yield flaw
