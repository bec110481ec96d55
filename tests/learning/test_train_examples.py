"""Rows become token ids once; what is too long is left out (decoders) or cut off (encoders)."""

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
