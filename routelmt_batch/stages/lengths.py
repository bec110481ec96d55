"""How long a model's translations are for prompts of what length, as sums that add up over shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.files.record import Record
from routelmt_batch.languages import direction

Sums = dict[str, Counter[str]]  # those of Lengths, by direction
_CODES = ("source_lang", "target_lang")


class Lengths(Record):
    """Sums over some rows of their prompt tokens, output tokens, squares and products."""

    rows: int = 0
    prompt: int = 0
    output: int = 0
    prompt_squared: int = 0
    prompt_output: int = 0
    output_squared: int = 0

    @classmethod
    def sum(cls, all_of: Iterable[Lengths]) -> Lengths:
        some = list(all_of)
        return cls(**{name: sum(getattr(one, name) for one in some) for name in cls.model_fields})


def add_lengths(sums: Sums, translations: pa.Table) -> None:
    """Add some translations to the sums.

    Args:
        translations: prompt_tokens, output_tokens, and language codes as they are written.
    """
    x, y = (pc.cast(pc.fill_null(translations[f"{of}_tokens"], 0), pa.int64()) for of in ("prompt", "output"))
    columns = {
        "prompt": x,
        "output": y,
        "prompt_squared": pc.multiply(x, x),
        "prompt_output": pc.multiply(x, y),
        "output_squared": pc.multiply(y, y),
    }
    table = pa.table({**{code: translations[code] for code in _CODES}, **columns})
    wanted = [([], "count_all"), *((name, "sum") for name in columns)]
    for group in table.group_by(list(_CODES)).aggregate(wanted).to_pylist():
        counts = sums.setdefault(direction(*(group[code] for code in _CODES)), Counter())
        counts.update({"rows": group["count_all"], **{name: group[f"{name}_sum"] for name in columns}})
