"""Rows become token ids once; what is too long is left out (decoders) or cut off (encoders)."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from routelmt_batch.errors import InputError
from routelmt_batch.learning.training import examples
from routelmt_batch.learning.training.folder import TrainingFolder
from routelmt_batch.learning.training.tables import find_tables, read_rows
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter
from tests.learning.training import SMALL, make_spec, write_encoder, write_labels

BARS = Bars.none()


def prepared(spec, tmp_path):
    folder = TrainingFolder(tmp_path / "router")
    return examples.prepare(spec, read_rows(spec, find_tables(spec), BARS), folder, BARS), folder


def test_each_side_holds_its_rows_prompts_and_targets(tmp_path):
    labels = pq.read_table(write_labels(tmp_path / "labels.parquet", 120)).to_pylist()
    found, folder = prepared(make_spec(tmp_path), tmp_path)
    assert sum(found.rows.values()) == 120
    assert found.directions == ["en-de", "en-zh"]
    seen = {}
    for side in ("train", "validation", "test"):
        side_rows = examples.read(folder, side)
        for ids, target, direction in zip(
            side_rows.token_ids, side_rows.targets, side_rows.directions, strict=True
        ):
            seen[tuple(ids)] = (target, direction)
    row = labels[17]
    ids = Prompter(str(SMALL)).token_ids([row["source"]], ["en"], [row["target_lang"]])[0]
    assert seen[tuple(ids)] == (
        pytest.approx(row["quality_large"] - row["quality_small"]),
        f"en-{row['target_lang']}",
    )
    train = examples.read(folder, "train").targets
    assert (found.scale.mean, found.scale.std) == pytest.approx((train.mean(), train.std()))


def weighed(tmp_path, **settings):
    """The weights of the rows of each side, by the row's target."""
    found, folder = prepared(make_spec(tmp_path, **settings), tmp_path)
    sides = {side: examples.read(folder, side) for side in found.rows}
    return {side: dict(zip(rows.targets, rows.weights, strict=True)) for side, rows in sides.items()}


def test_a_row_s_weight_is_its_share_of_the_training_rows_references(tmp_path):
    """A row without a list has one reference."""
    counts = [row % 4 for row in range(120)]
    gains = [[1.0] * count or None for count in counts]
    labels = pq.read_table(
        write_labels(tmp_path / "labels.parquet", 120, gain_by_reference=gains)
    ).to_pylist()
    found = weighed(tmp_path)
    of = {
        float(np.round(row["quality_large"] - row["quality_small"], 9)): max(1, count)
        for row, count in zip(labels, counts, strict=True)
    }
    average = sum(of[target] for target in found["train"]) / len(found["train"])
    for rows in found.values():
        for target, weight in rows.items():
            assert weight == pytest.approx(of[target] / average)
    assert sum(found["train"].values()) == pytest.approx(len(found["train"]))


@pytest.mark.parametrize(
    ("columns", "settings"),
    [
        ({}, {}),
        ({"gain_by_reference": [[1.0, 2.0]] * 60}, {}),
        (
            {"gain_by_reference": [[1.0] * (1 + row % 3) for row in range(60)]},
            {"training__weigh_references": False},
        ),
    ],
)
def test_rows_without_counts_or_with_equal_ones_or_if_it_is_off_weigh_one(tmp_path, columns, settings):
    write_labels(tmp_path / "labels.parquet", 60, **columns)
    found = weighed(tmp_path, **settings)
    assert {weight for rows in found.values() for weight in rows.values()} == {1.0}


def test_a_decoder_leaves_long_prompts_out_and_an_encoder_cuts_them_off(tmp_path):
    texts = [f"Short {row}." for row in range(90)] + [f"{row} and so on" * 40 for row in range(10)]
    write_labels(tmp_path / "labels.parquet", 100, source=texts)
    found, folder = prepared(make_spec(tmp_path), tmp_path)
    assert (found.left_out_too_long, found.cut_off) == (10, 0)
    assert max(map(len, examples.read(folder, "train").token_ids)) <= 128

    encoder = write_encoder(tmp_path / "encoder")
    spec = make_spec(tmp_path, base__source=str(encoder), base__architecture="encoder")
    found, folder = prepared(spec, tmp_path)
    assert (found.left_out_too_long, found.cut_off) == (0, 10)
    longest = max(examples.read(folder, "train").token_ids, key=len)
    assert (len(longest), longest[0], longest[-1]) == (128, 1, 1)


def test_nothing_left_is_refused(tmp_path):
    write_labels(tmp_path / "labels.parquet", 50)
    with pytest.raises(InputError, match="too few to train on"):
        prepared(make_spec(tmp_path, training__max_length_tokens=8), tmp_path)


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (320, {}, 10),
        (321, {}, 11),
        (321, {"training__micro_batch_rows": 8}, 11),  # 41 batches of 8, four to a step
        (321, {"workers__count": 2}, 11),  # 21 batches of 16: 11 of each worker
        (321, {"workers__count": 2, "training__micro_batch_rows": 4}, 11),
    ],
)
def test_steps_of_an_epoch(tmp_path, rows, settings, steps):
    assert examples.steps_per_epoch(make_spec(tmp_path, **settings), rows) == steps
