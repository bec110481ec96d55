"""Which side a row falls on: training, validation or test. It knows a text and a seed, nothing more."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from decimal import Decimal
from typing import Final

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
SIDES: Final = (TRAIN, VALIDATION, TEST)
_HASH_BYTES = 8


def side(value: object, seed: int, validation: Decimal, test: Decimal) -> str:
    """The side of every row with this value: its hash decides, so that equal values never part
    and rows that come later move none."""
    digest = hashlib.blake2b(f"{seed}\0{value}".encode(), digest_size=_HASH_BYTES).digest()
    place = Decimal(int.from_bytes(digest, "big")) / (1 << 8 * _HASH_BYTES)
    if place < test:
        return TEST
    return VALIDATION if place < test + validation else TRAIN


def sides(values: Iterable[object], seed: int, validation: Decimal, test: Decimal) -> list[str]:
    """The side of each value, in order."""
    known: dict[object, str] = {}
    found = []
    for value in values:
        if value not in known:
            known[value] = side(value, seed, validation, test)
        found.append(known[value])
    return found
