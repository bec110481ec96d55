"""Label tables that cannot be learnt from are refused in words; rows that cannot are counted."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from routelmt_batch.errors import InputError, ModelError
from routelmt_batch.learning.training.examples import check_sides
from routelmt_batch.learning.training.tables import check_makers, find_tables, read_rows
from routelmt_batch.progress import Bars
from tests.learning.training import made, make_spec, write_labels


class Heard(Bars):
    def __init__(self) -> None:
        super().__init__(Console(quiet=True), quiet=True)
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def heard() -> Heard:
    return Heard()


def rows_of(spec, heard):
    return read_rows(spec, find_tables(spec), heard)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tables": ["label.parquet"]}, "no such folder or file; did you mean 'labels.parquet'?"),
        (
            {"target": "quality", "tables": ["bare.parquet"]},
            "Training for quality needs source, source_lang, target_lang, quality_small",
        ),
        ({"split__by": "document"}, "no column 'document' (split.by); it has"),
        ({"tables": ["labels.parquet", "labels.parquet"]}, "would count twice: give one of them"),
        ({"tables": ["broken.parquet"]}, "not readable as Parquet"),
        ({"tables": ["words.parquet"]}, "column 'gain' is string, not numeric"),
        (
            {"tables": ["list.parquet"]},
            "'gain_by_reference' is double, not a list of numbers: write it as `label`",
        ),
        ({"tables": ["no.parquet"]}, "needs source, source_lang, target_lang, gain: give a table"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path, settings, message):
    write_labels(tmp_path / "labels.parquet", 30)
    table = pq.read_table(tmp_path / "labels.parquet")
    pq.write_table(table.drop(["quality_small"]), tmp_path / "bare.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    pq.write_table(table.append_column("gain_by_reference", table["gain"]), tmp_path / "list.parquet")
    bare = table.drop(["quality_small", "gain"])
    pq.write_table(bare, tmp_path / "no.parquet")
    pq.write_table(bare.append_column("gain", pa.array(["much"] * 30)), tmp_path / "words.parquet")
    with pytest.raises(InputError) as error:
        find_tables(make_spec(tmp_path, **settings))
    assert message in str(error.value)


def test_unusable_rows_are_left_out_and_counted(tmp_path, heard):
    path = write_labels(tmp_path / "labels.parquet", 100)
    table = pq.read_table(path).to_pydict()
    table["quality_small"][:3] = [None, math.nan, math.inf]
    table["source"][3:5] = [None, "  "]
    table["target_lang"][5:7] = ["xx", None]
    pq.write_table(pa.table(table), path)
    assert rows_of(make_spec(tmp_path), heard).num_rows == 93
    assert heard.warnings == [
        "3 of 100 label rows left out: gain is null, NaN or infinite",
        "2 of 97 label rows left out: no text",
        "2 of 95 label rows left out: a language that is not one of LMT's 60 codes",
    ]


def test_gains_that_differ_by_rounding_alone_teach_nothing(tmp_path, heard):
    small = np.random.default_rng(0).uniform(20, 80, 300)
    write_labels(tmp_path / "labels.parquet", quality_small=small, quality_large=small + 3)
    spec = make_spec(tmp_path)
    with pytest.raises(InputError, match="every gain on the train side is 3: there is nothing to learn"):
        check_sides(rows_of(spec, heard), spec)


def test_no_sentence_is_on_two_sides(tmp_path, heard):
    texts = [f"Sentence {row % 40}." for row in range(200)]
    write_labels(tmp_path / "labels.parquet", 200, source=texts)
    rows = rows_of(make_spec(tmp_path), heard).to_pylist()
    assert len({(row["source"], row["side"]) for row in rows}) == len({row["source"] for row in rows})


def test_held_out_tables_are_the_test_and_their_sentences_leave_training(tmp_path, heard):
    write_labels(tmp_path / "labels.parquet", 200)
    shared = pq.read_table(tmp_path / "labels.parquet")["source"].to_pylist()[:50]
    write_labels(tmp_path / "held.parquet", 50, source=shared)
    spec = make_spec(tmp_path, test_tables=[str(tmp_path / "held.parquet")])
    rows = rows_of(spec, heard).to_pylist()
    tested = {row["source"] for row in rows if row["side"] == "test"}
    assert tested == set(shared)
    assert sum(row["side"] != "test" for row in rows) == 150
    assert not tested & {row["source"] for row in rows if row["side"] != "test"}
    assert heard.warnings == ["50 of 250 label rows left out: their source is also in test_tables"]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (19, {}, "19 usable label rows: too few to train on (at least 20)"),
        (40, {"source": ["One."] * 40}, "side has 0 rows of 40: give more labels, more distinct values"),
        (
            100,
            {"quality_small": [47.5] * 100},
            "every gain on the train side is 2.5: there is nothing to learn",
        ),
    ],
)
def test_too_little_to_learn_from(tmp_path, heard, rows, columns, message):
    write_labels(tmp_path / "labels.parquet", rows, **columns)
    spec = make_spec(tmp_path)
    with pytest.raises(InputError) as error:
        check_sides(rows_of(spec, heard), spec)
    assert message in str(error.value)


def test_two_metrics_do_not_mix(tmp_path, heard):
    write_labels(tmp_path / "labels" / "a.parquet", 30)
    comet = made(metric={"name": "comet", "signature": "XCOMET-XXL"})
    write_labels(tmp_path / "labels" / "b.parquet", 31, comet)
    spec = make_spec(tmp_path, tables=["labels"])
    with pytest.raises(ModelError) as error:
        check_makers(spec, find_tables(spec), heard)
    assert "XCOMET-XXL" in str(error.value) and "a.parquet" in str(error.value)
    assert "Such labels cannot be mixed" in str(error.value)


def test_labels_of_another_small_model_are_refused_for_a_decoder_alone(tmp_path, heard):
    models = made()["models"] | {"small": {"source": "other", "weights": "cd" * 32}}
    write_labels(tmp_path / "labels.parquet", 30, made(models=models))
    spec = make_spec(tmp_path)
    with pytest.raises(ModelError) as error:
        check_makers(spec, find_tables(spec), heard)
    assert "not those of the small model that made the labels (other, cdcdcdcdcdcd)" in str(error.value)
    encoder = make_spec(tmp_path, base__architecture="encoder")
    assert check_makers(encoder, find_tables(encoder), heard).models.model_dump() == models


@pytest.mark.parametrize("told", [{}, {"metric": {"name": "chrf"}}, ["foreign"], {"models": None}])
def test_a_table_that_does_not_say_what_made_it_is_a_warning(tmp_path, heard, told):
    write_labels(tmp_path / "labels.parquet", 30, told)
    spec = make_spec(tmp_path)
    assert check_makers(spec, find_tables(spec), heard) is None
    assert heard.warnings[0].startswith("1 of 1 label tables (labels.parquet) do not say")


def test_another_prompt_is_a_warning(tmp_path, heard):
    write_labels(tmp_path / "labels.parquet", 30, made(prompt={"template": "{source}"}))
    spec = make_spec(tmp_path)
    check_makers(spec, find_tables(spec), heard)
    assert heard.warnings[0].startswith('the labels were made with the prompt "{source}"')


def test_a_gain_is_that_of_the_qualities_and_another_one_is_told(tmp_path, heard):
    path = write_labels(tmp_path / "labels.parquet", 40)
    table = pq.read_table(path).to_pydict()
    gains = [
        large - small for large, small in zip(table["quality_large"], table["quality_small"], strict=True)
    ]
    table["gain"][3] += 0.5
    table["gain"][4] += 0.0005
    table["gain"][5] = None
    pq.write_table(pa.table(table), path)
    assert rows_of(make_spec(tmp_path), heard)["target"].to_pylist() == pytest.approx(gains, abs=1e-8)
    assert heard.warnings == [
        "the column 'gain' is not quality_large - quality_small in 1 rows (by at most 0.500); the column is not used"
    ]


def test_a_table_of_gains_alone_is_learnt_from_as_it_is(tmp_path, heard):
    path = write_labels(tmp_path / "labels.parquet", 40)
    pq.write_table(pq.read_table(path).drop(["quality_large"]), path)
    found = rows_of(make_spec(tmp_path), heard)
    assert found["target"].to_pylist() == pq.read_table(path)["gain"].to_pylist()
    assert not heard.warnings


def test_rows_have_as_many_references_as_their_lists_of_gains(tmp_path, heard):
    """One if the list is null or empty, as with a metric that reads no references, or if there is no list."""
    gains = [[1.0, 2.0], [1.0], [], None, [1.0, 2.0, None]]
    write_labels(tmp_path / "labels" / "a.parquet", 5, gain_by_reference=gains)
    write_labels(tmp_path / "labels" / "bb.parquet", 4, gain_by_reference=pa.nulls(4))
    write_labels(tmp_path / "labels" / "c.parquet", 3)
    rows = rows_of(make_spec(tmp_path, tables=["labels"]), heard)
    assert rows["references"].to_pylist() == [2, 1, 1, 1, 3, *[1] * 7]


@pytest.mark.parametrize("by", ["source", "text"])
def test_text_and_languages_are_read_where_the_label_spec_had_them(tmp_path, heard, by):
    place = {"columns": {"source": "text", "source_lang": "from", "target_lang": "to"}, "source_lang": "en"}
    path = write_labels(tmp_path / "labels.parquet", 60)
    table = pq.read_table(path)
    plain = rows_of(make_spec(tmp_path), heard).to_pylist()
    renamed = table.drop(["source_lang"]).rename_columns({"source": "text", "target_lang": "to"})
    metadata = {b"routelmt": json.dumps(made(input=place))}
    pq.write_table(renamed.replace_schema_metadata(metadata), path)
    assert rows_of(make_spec(tmp_path, split__by=by), heard).to_pylist() == plain
    write_labels(tmp_path / "plain.parquet", 61)
    with pytest.raises(InputError, match=r"labels.parquet has source in column 'text', .*plain.parquet has"):
        find_tables(make_spec(tmp_path, test_tables=["plain.parquet"]))
