"""Directions as small whole numbers, as committed scores have them. It knows no rows."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.prompts import LANGUAGES

# The order of LANGUAGES is part of the format of committed scores.
_CODES = list(LANGUAGES)
PLACES = 64


def numbers(source_langs: pa.ChunkedArray, target_langs: pa.ChunkedArray) -> pa.ChunkedArray:
    """The number of each row's direction (int16), by LMT's codes; null if one is not among them."""
    known = pa.array(_CODES)
    source, target = (
        pc.cast(pc.index_in(codes, value_set=known), pa.int16()) for codes in (source_langs, target_langs)
    )
    return pc.add(pc.multiply(source, pa.scalar(PLACES, pa.int16())), target)


def number(direction: str) -> int:
    """The number of a direction in LMT's codes, such as `en-zh`."""
    source, target = (_CODES.index(code) for code in direction.split("-"))
    return source * PLACES + target
