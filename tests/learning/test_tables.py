"""Label tables from real Parquet files: what is read, what is dropped, what is refused."""

import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch.errors import InputError, UsageError
from routelmt_batch.learning.evaluation.tables import read_tables


def write(path, small, large, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"quality_small": small, "quality_large": large, **columns}), path)
    return path


def test_a_table_comes_out_as_arrays(tmp_path):
    path = write(
        tmp_path / "t.parquet",
        [10.0, 20.0, 30.0],
        pa.array([15.0, 18.0, 30.5], pa.float32()),
        source_lang=["en", "zh", "en"],
        target_lang=["de", "en", "de"],
        length=[3, None, 5],
        text=["a", "b", "c"],
    )
    labels = read_tables([path], ["length"])
    assert labels.quality_small.tolist() == [10, 20, 30] and labels.quality_small.dtype == np.float64
    assert labels.gain.tolist() == [5, -2, 0.5]
    assert labels.directions == ("en-de", "zh-en")
    assert labels.direction.tolist() == [0, 1, 0] and labels.direction.dtype == np.int32
    assert labels.scores["length"].tolist()[::2] == [3, 5] and math.isnan(labels.scores["length"][1])
    assert labels.kept.all() and labels.warnings == []


def test_files_of_a_folder_come_in_the_order_of_their_names_bytes(tmp_path):
    for name, value in (("b.parquet", 2.0), ("a/z.parquet", 1.0), ("é.parquet", 4.0), ("c.parquet", 3.0)):
        write(tmp_path / "in" / name, [value], [0.0])
    assert read_tables([tmp_path / "in"]).quality_small.tolist() == [1, 2, 3, 4]
    assert read_tables([f"{tmp_path}/in/[bc].parquet"]).quality_small.tolist() == [2, 3]


def test_without_language_columns_there_are_no_directions(tmp_path):
    labels = read_tables([write(tmp_path / "t.parquet", [1, 2], [3, 4])])
    assert labels.directions == () and labels.direction.tolist() == [-1, -1]


def test_rows_without_both_qualities_are_dropped_and_counted(tmp_path):
    small = [1.0, None, math.nan, 4.0, math.inf, 6.0]
    path = write(tmp_path / "t.parquet", small, [1.0, 1.0, 1.0, 1.0, 1.0, None], s=range(6))
    labels = read_tables([path], ["s"])
    assert labels.kept.tolist() == [True, False, False, True, False, False]
    assert labels.quality_small.tolist() == [1, 4] and labels.scores["s"].tolist() == [0, 3]
    assert labels.warnings == ["4 of 6 rows dropped because of their quality: 2 null, 1 NaN, 1 infinite"]


def test_languages_stand_where_the_label_spec_had_them(tmp_path):
    signature = {
        "metric": {"name": "chrf", "signature": "s"},
        "models": {name: {"source": "m", "weights": "w"} for name in ("small", "large")},
        "prompt": {"template": "{source}"},
        "input": {"columns": {"source": "text", "target_lang": "to"}, "source_lang": "en"},
    }
    path = write(tmp_path / "t.parquet", [1.0, 2.0], [3.0, 4.0], to=["de", "zh"])
    metadata = {b"routelmt": json.dumps(signature)}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), path)
    assert read_tables([path]).directions == ("en-de", "en-zh")
    signature["input"]["target_lang"] = "de"
    metadata = {b"routelmt": json.dumps(signature)}
    pq.write_table(pq.read_table(path).replace_schema_metadata(metadata), tmp_path / "u.parquet")
    assert read_tables([tmp_path / "u.parquet"]).directions == ("en-de",)
    with pytest.raises(InputError, match=r"t.parquet has .*'to', .*u.parquet has .*target_lang always 'de'"):
        read_tables([tmp_path])


def test_directions_of_dropped_rows_are_not_named(tmp_path):
    languages = {"source_lang": ["en", "en", "zh"], "target_lang": ["de", "de", "en"]}
    labels = read_tables([write(tmp_path / "t.parquet", [1.0, 2.0, None], [1.0, 2.0, 3.0], **languages)])
    assert labels.directions == ("en-de",) and labels.direction.tolist() == [0, 0]


def test_rows_that_name_no_language_are_a_direction_of_their_own_with_a_warning(tmp_path):
    languages = {"source_lang": ["en", None], "target_lang": ["de", "de"]}
    labels = read_tables([write(tmp_path / "t.parquet", [1.0, 2.0], [1.0, 2.0], **languages)])
    assert labels.directions == ("?-de", "en-de")
    assert labels.warnings == ["1 rows do not name both languages; these count as '?'"]


def test_a_gain_column_is_recomputed_and_another_one_is_told(tmp_path):
    near = write(tmp_path / "near.parquet", [1.0, 2.0], [3.0, 4.0], gain=[2.0009, None])
    assert read_tables([near]).warnings == []
    far = write(tmp_path / "far.parquet", [1.0, 2.0], [3.0, 4.0], gain=[2.5, 2.0])
    labels = read_tables([far])
    assert labels.gain.tolist() == [2, 2]
    (warning,) = labels.warnings
    assert "'gain' is not quality_large - quality_small in 1 rows (by at most 0.500)" in warning


def test_a_column_of_decimals_or_integers_is_numeric(tmp_path):
    path = write(tmp_path / "t.parquet", pa.array([1, 2]), pa.array([1, 2]).cast(pa.decimal128(21, 2)))
    assert read_tables([path]).quality_large.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"quality_small": [1.0, 2.0], "quality_larg": [1.0, 2.0]}, "no column 'quality_large'; did you mean 'quality_larg'?"),
        ({"quality_small": ["a", "b"], "quality_large": [1.0, 2.0]}, "column 'quality_small' is string, not numeric"),
        ({"quality_small": [1.0, None], "quality_large": [1.0, 2.0]}, "1 of 2 rows have both quality_small and quality_large (dropped: 1 null)"),
        ({"quality_small": [None, None], "quality_large": [1.0, 2.0]}, "0 of 2 rows have both"),
        ({"quality_small": [1.0], "quality_large": [1.0]}, "1 of 1 rows have both quality_small and quality_large: a comparison needs at least two rows"),
        ({"quality_small": [1.0], "quality_large": [1.0], "source_lang": [1], "target_lang": ["de"]}, "column 'source_lang' is int64, not string"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=re.escape(message)):
        read_tables([tmp_path / "t.parquet"])


def test_a_score_column_that_is_lacking_is_refused_with_the_columns_there(tmp_path):
    path = write(tmp_path / "t.parquet", [1.0, 2.0], [1.0, 2.0], length=[1, 2])
    with pytest.raises(InputError, match="no column 'lenght'; did you mean 'length'.*it has quality_small"):
        read_tables([path], ["lenght"])


def test_paths_that_hold_nothing_are_refused(tmp_path):
    write(tmp_path / "labels.parquet", [1.0, 2.0], [1.0, 2.0])
    with pytest.raises(InputError, match="no such folder or file; did you mean 'labels.parquet'"):
        read_tables([tmp_path / "label.parquet"])
    with pytest.raises(InputError, match="no such folder or file|no Parquet shards"):
        read_tables([f"{tmp_path}/x*.parquet"])
    with pytest.raises(UsageError, match="no label table is given"):
        read_tables([])


def test_a_file_given_twice_is_refused(tmp_path):
    path = write(tmp_path / "t.parquet", [1.0, 2.0], [1.0, 2.0])
    with pytest.raises(InputError, match="given twice"):
        read_tables([path, tmp_path])


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_text("quality")
    with pytest.raises(InputError, match="not readable as Parquet"):
        read_tables([tmp_path / "t.parquet"])
