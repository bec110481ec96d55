"""A job's list of input shards: a Parquet file that the manifest names, because a corpus may have a hundred
thousand shards. Each list has a name of its own, so that no run replaces another's."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from routelmt_batch.corpus.shards import Shard
from routelmt_batch.errors import WorkChanged
from routelmt_batch.files.location import Location
from routelmt_batch.files.parquet import read_parquet
from routelmt_batch.files.write import write_parquet

_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "uri": pa.string(),
        "rows": pa.int64(),
        "size_bytes": pa.int64(),
        "sha256": pa.string(),
        "row_groups": pa.list_(pa.int64()),
        "version": pa.string(),
    }
)


def write_list(folder: Location, shards: Sequence[Shard], epoch: int) -> dict[str, Any]:
    """Write the list; returns what the manifest says of it."""
    name = f"{epoch:06d}-{uuid.uuid4().hex}.parquet"
    table = pa.Table.from_pylist([asdict(shard) for shard in shards], _SCHEMA)
    _, sha256 = write_parquet(folder / name, table, "shards")
    rows = sum(shard.rows for shard in shards)
    return {"file": name, "sha256": sha256, "count": len(shards), "rows": rows}


def read_list(folder: Location, named: Mapping[str, Any]) -> list[Shard]:
    """The shards of the list that a manifest names, in name order.

    Raises:
        WorkChanged: it is missing or damaged.
    """
    path = folder / named["file"]
    try:
        lines = read_parquet(path, named["sha256"]).to_pylist()
    except FileNotFoundError:
        raise WorkChanged(
            f"{path}: is missing. It lists the input shards that the job began with. Restore it, or start a "
            "new job with another --output. `routelmt-batch verify` says what else is damaged"
        ) from None
    return [Shard(**{**line, "row_groups": tuple(line["row_groups"])}) for line in lines]
