"""Discovery, inspection and atomic writes."""

import fnmatch
import random
import shlex

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch.corpus.shards import alone, discover, inspect
from routelmt_batch.corpus.units import groups, read_lines, read_unit, units
from routelmt_batch.errors import InputError
from routelmt_batch.files import parquet
from routelmt_batch.files.disk import DiskLocation
from routelmt_batch.files.parquet import batches, parquet_file, read_ahead
from routelmt_batch.files.write import write_file, write_json
from routelmt_batch.spec import Columns, Input
from tests.conftest import COLUMNS, write_shard


def spec(uri: object, **extra: object) -> Input:
    return Input(uri=str(uri), columns=Columns(**COLUMNS), **extra)


def test_names_are_relative_and_in_utf8_order(corpus):
    write_shard(corpus / "é.parquet", ["x"])
    write_shard(corpus / "Z.parquet", ["x"])
    write_shard(corpus / "_tmp" / "no.parquet", ["x"])
    write_shard(corpus / ".no.parquet", ["x"])
    names = [name for name, _ in discover(str(corpus))]
    assert names == [
        "Z.parquet",
        "a.parquet",
        "b-one.parquet",
        "c-none.parquet",
        "sub/d.parquet",
        "é.parquet",
    ]


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.parquet", ["a.parquet", "b-one.parquet", "c-none.parquet"]),
        ("**/*.parquet", ["a.parquet", "b-one.parquet", "c-none.parquet", "sub/d.parquet"]),
        ("s*/*.parquet", ["sub/d.parquet"]),
        ("a.parquet", ["a.parquet"]),
    ],
)
def test_globs_and_single_files(corpus, glob, names):
    assert [name for name, _ in discover(f"{corpus}/{glob}")] == names


@pytest.mark.parametrize(
    ("uri", "only", "message"),
    [
        ("{corpus}/nothing", None, "no such folder or file"),
        ("{corpus}/*.csv", None, "no Parquet shards there"),
        ("{corpus}", "z*", r"--shards z\*: matches none of 4 shards"),
    ],
)
def test_nothing_to_read_is_told(corpus, uri, only, message):
    with pytest.raises(InputError, match=message):
        discover(uri.format(corpus=corpus), only)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": pa.array([1])}, "column 'text' .input.columns.source. is int64, not string"),
        ({"to": pa.array([[1]])}, "column 'to' .input.columns.target_lang. is list"),
        ({"status": pa.array(["x"])}, "has a column 'status', which is the name of an output column"),
    ],
)
def test_a_shard_that_does_not_fit_is_named(tmp_path, columns, message):
    write_shard(tmp_path / "odd.parquet", ["x"], **columns)
    with pytest.raises(InputError, match=rf"odd\.parquet: {message}"):
        inspect(discover(str(tmp_path)), spec(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        pa.array(["x"], pa.large_string()),
        pa.array(["x"]).dictionary_encode(),
        pa.nulls(1),
    ],
)
def test_kinds_of_text(tmp_path, text):
    write_shard(tmp_path / "a.parquet", ["x"], text=text)
    shards, unreadable = inspect(discover(str(tmp_path)), spec(tmp_path))
    assert len(shards) == 1 and not unreadable


def test_a_constant_language_needs_no_column(tmp_path):
    write_shard(tmp_path / "a.parquet", ["x"])
    only = Input(
        uri=str(tmp_path),
        columns=Columns(source="text", source_lang="none", target_lang="to"),
        source_lang="en",
    )
    assert len(inspect(discover(str(tmp_path)), only)[0]) == 1


def test_units_are_row_groups_up_to_the_limit(corpus):
    shards, _ = inspect(discover(str(corpus)), spec(corpus))
    whole = [(unit.shard.name, unit.first_row, unit.rows) for unit in units(shards)]
    assert whole == [
        ("a.parquet", 0, 17),
        ("a.parquet", 17, 17),
        ("a.parquet", 34, 16),
        ("b-one.parquet", 0, 1),
        ("sub/d.parquet", 0, 20),
    ]
    assert [unit.rows for unit in units(shards, 20)] == [17, 3]


def test_slices_of_row_groups_read_as_the_whole(corpus):
    shards, _ = inspect(discover(str(corpus)), spec(corpus))
    table = pq.read_table(corpus / "a.parquet")
    for most_rows in (1, 5, 17, 100):
        found = [
            (row, text)
            for unit in units(shards[:1], 45, most_rows)
            for lines in read_lines(unit, spec(corpus))
            for row, text in zip(lines.rows, lines.texts, strict=True)
        ]
        assert found == list(enumerate(table["text"].to_pylist()[:45]))


def test_slices_of_one_row_group_are_one_scan(tmp_path, monkeypatch):
    texts = [f"text {row}" for row in range(1000)]
    write_shard(tmp_path / "a.parquet", texts)
    shards, _ = inspect(discover(str(tmp_path)), spec(tmp_path))
    opened = []

    def counting(*arguments):
        opened.append(arguments)
        return parquet_file(*arguments)

    monkeypatch.setattr("routelmt_batch.corpus.units.parquet_file", counting)
    pieces = list(units(shards, most_rows=70))
    for wanted in (pieces, pieces[2::5]):  # some are passed over
        opened.clear()
        found = [
            (row, text)
            for unit in wanted
            for lines in read_lines(unit, spec(tmp_path))
            for row, text in zip(lines.rows, lines.texts, strict=True)
        ]
        rows = [row for unit in wanted for row in range(unit.first_row, unit.end_row)]
        assert found == [(row, texts[row]) for row in rows]
        assert len(opened) == 1
    assert list(groups(pieces, lambda unit: unit)) == [pieces], "one task reads them all"


def test_long_rows_come_in_small_batches(tmp_path, monkeypatch):
    write_shard(tmp_path / "a.parquet", ["x" * 1000] * 50)
    monkeypatch.setattr("routelmt_batch.files.parquet._BATCH_BYTES", 10_000)
    pq.write_table(pq.read_table(tmp_path / "a.parquet"), tmp_path / "a.parquet", use_dictionary=False)
    (shard,), _ = inspect(discover(str(tmp_path)), spec(tmp_path))
    (unit,) = units([shard])
    sizes = [batch.num_rows for _, batch in read_unit(unit)]
    assert sum(sizes) == 50 and max(sizes) <= 10


@pytest.mark.parametrize("where", ["disk", "store"])
def test_no_whole_row_group_is_held(tmp_path, monkeypatch, where):
    path, pages = (
        tmp_path / "a.parquet",
        {"write_batch_size": 4, "use_dictionary": False, "compression": "none"},
    )
    wide = [random.Random(row).randbytes(1 << 20) for row in range(60)]
    pq.write_table(pa.table({"wide": wide}), path, **pages)
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 4 << 20)
    monkeypatch.setattr(parquet, "_MOST_AHEAD_BYTES", 16 << 20)
    before, held = pa.total_allocated_bytes(), []
    with DiskLocation(path).open() as source:
        opened = parquet_file(DiskLocation(path)) if where == "disk" else read_ahead(source)
        with opened as file:
            held = [pa.total_allocated_bytes() for _ in batches(file, 0, 1000)]
    assert len(held) >= 15 and max(held) - before < 30 << 20


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    write_json(path, {"a": 1}, "report")
    before = path.read_text()

    def fail(file):
        file.write_text("half")
        raise OSError("torn")

    with pytest.raises(OSError, match="torn"):
        write_file(path, fail, lambda file: None, "report")
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.parquet", "sub/part[1] of 2?.parquet", "it's *.parquet"])
def test_the_option_for_one_shard_takes_no_other(name):
    option, pattern = shlex.split(alone(name))
    others = ["a.parquet", "sub/part1 of 2x.parquet", "it's x.parquet", "b.parquet", name]
    assert option == "--shards"
    assert {other for other in others if fnmatch.fnmatchcase(other, pattern)} == {name}
