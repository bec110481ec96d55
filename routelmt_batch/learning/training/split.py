"""Divides rows into training, validation and test, by a text and a seed."""

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
    """The side of every row with this value. Its hash decides, so equal values stay together, and rows that
    are added later move no others."""
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
