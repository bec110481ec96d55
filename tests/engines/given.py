"""Lanes without a job: work units that hold their requests, and a place to keep results."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from routelmt_batch.engines.lanes import REQUESTS, Mask, Pending


@dataclass(frozen=True)
class Given:
    """A work unit that is its own requests."""

    requests: pa.Table

    @property
    def unit(self) -> "Given":
        return self

    @property
    def shard(self) -> SimpleNamespace:
        return SimpleNamespace(name=self.requests["shard"][0].as_py())

    @property
    def row_group(self) -> int:
        return id(self)

    @property
    def rows(self) -> int:
        return self.requests.num_rows


def _all(work: Given) -> Mask:
    return np.ones(work.rows, bool)


def _read(work: Given, wanted: Mask) -> Iterator[pa.Table]:
    yield work.requests


ALL = Pending(_all, _read)


def requests(skips: dict[int, str] | None = None, **columns: list[str]) -> pa.Table:
    """REQUESTS, English to German, with the given columns in place of theirs or beside them."""
    rows = len(next(iter(columns.values())))
    table = {
        "shard": ["s"] * rows,
        "row": list(range(rows)),
        "skip": [(skips or {}).get(row, "") for row in range(rows)],
        "source": ["."] * rows,
        "source_lang": ["en"] * rows,
        "target_lang": ["de"] * rows,
        **columns,
    }
    types = {field.name: field.type for field in REQUESTS}
    return pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in table.items()})


def keep_results(folder: Path) -> Callable[[pa.Table], int]:
    """A lane's `write`: a file for each part; its receipt tells the rows."""

    def write(results: pa.Table) -> int:
        pq.write_table(results, folder / f"{results['row'][0].as_py()}.parquet")
        return results.num_rows

    return write
