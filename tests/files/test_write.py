"""Whole files: what was not written whole gets no name."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch.files.write import write_parquet


def test_a_table_that_loses_rows_on_its_way_gets_no_name(tmp_path, monkeypatch):
    usual = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda table, *rest, **more: usual(table[1:], *rest, **more))
    with pytest.raises(OSError, match=r"part\.parquet: only 2 of 3 rows could be read back"):
        write_parquet(tmp_path / "part.parquet", pa.table({"row": [1, 2, 3]}), "part")
    assert list(tmp_path.iterdir()) == []
