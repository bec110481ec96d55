"""The worker's loop on real models, in this process: methods, early stopping, seeds, a killed worker."""

import json
import multiprocessing
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from routelmt_batch import failpoints
from routelmt_batch.cli import show
from routelmt_batch.errors import ModelError, OutputError
from routelmt_batch.job.flow import Options
from routelmt_batch.learning.training import examples
from routelmt_batch.learning.training.folder import TrainingFolder
from routelmt_batch.learning.training.train import train
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import read_card
from routelmt_batch.store import checkpoints
from tests.learning.training import SMALL, in_process, make_spec, write_encoder, write_labels

pytestmark = pytest.mark.slow
BARS = Bars.none()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training by the spec's own settings, made once: its report, and the folder of table and router."""
    work = tmp_path_factory.mktemp("whole")
    write_labels(work / "labels.parquet")
    with pytest.MonkeyPatch.context() as patch:
        in_process(patch)
        return train(make_spec(work), Options(), BARS).report, work


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains by a spec's settings in this process and returns (report, folder)."""
    in_process(monkeypatch)
    write_labels(tmp_path / "labels.parquet")

    def train_here(output="router", **settings):
        root = tmp_path / output
        outcome = train(make_spec(tmp_path, output__uri=str(root), **settings), Options(), BARS)
        return outcome.report, TrainingFolder(root)

    return train_here


def weights(source):
    from safetensors.torch import load_file

    return load_file(f"{source}/model.safetensors")


def test_the_same_seed_is_the_same_router_and_another_seed_is_not(run, whole):
    first, folder = whole[0], TrainingFolder(whole[1] / "router")
    again, other = run("again")
    assert pq.read_table(folder.predictions).equals(pq.read_table(other.predictions))
    assert checkpoints.weights_hash(str(folder.root)) == checkpoints.weights_hash(str(other.root))
    assert first.held_out == again.held_out
    _, third = run("third", training__seed=1)
    assert checkpoints.weights_hash(str(folder.root)) != checkpoints.weights_hash(str(third.root))


def test_head_only_leaves_the_model_as_it_was(run):
    report, folder = run(method="head_only")
    before, after = weights(SMALL), weights(folder.root)
    assert report.trained.trainable_parameters == 128
    assert set(after) - set(before) == {"score.weight"}
    assert all(after[name].equal(before[name]) for name in set(after) & set(before))
    assert after["score.weight"].abs().max() > 0
    assert not (folder.root / "adapter").exists()


def test_full_fine_tuning_moves_every_matrix_and_learns(run):
    report, folder = run(method="full", target="quality", training__learning_rate=2e-3)
    before, after = weights(SMALL), weights(folder.root)
    assert not any(after[name].equal(before[name]) for name in after if "proj" in name)
    assert report.held_out.overall.spearman > 0.5
    assert report.card["kind"] == "routelmt-q"
    assert read_card(str(folder.root)).target == "quality"


def test_a_row_with_three_references_is_learnt_like_three_rows(tmp_path, monkeypatch):
    """A step takes all rows, so that the losses of every step are the same. Each sentence goes in two directions
    with one gain, so that mean and deviation of the targets are the same, too."""
    in_process(monkeypatch)
    lines = pq.read_table(write_labels(tmp_path / "labels.parquet", 150)).drop(["target_lang"]).to_pylist()
    rows = [
        line | {"target_lang": target, "gain_by_reference": [line["gain"]] * count}
        for line in lines
        for target, count in (("de", 3), ("zh", 1))
    ]
    repeated = [row for row in rows for _ in row["gain_by_reference"]]
    told = {}
    for name, some, weigh in (("weighed", rows, True), ("repeated", repeated, False), ("plain", rows, False)):
        path = write_labels(tmp_path / name / "labels.parquet", 1)
        table = pa.Table.from_pylist(some).replace_schema_metadata(pq.read_schema(path).metadata)
        pq.write_table(table, path)
        settings = {"epochs": 4, "batch_rows": 1024, "evaluations_per_epoch": 1, "weigh_references": weigh}
        spec = make_spec(path.parent, **{f"training__{key}": value for key, value in settings.items()})
        train(spec, Options(), BARS)
        log = TrainingFolder(path.parent / "router").log.read_text().splitlines()
        told[name] = [line["loss"] for line in map(json.loads, log) if "loss" in line]
    assert len(told["weighed"]) == 4
    np.testing.assert_allclose(told["weighed"], told["repeated"], rtol=1e-3)
    assert not np.allclose(told["weighed"], told["plain"], rtol=1e-2)


def test_an_encoders_held_out_predictions_are_those_of_plain_transformers(run, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    encoder = write_encoder(tmp_path / "encoder")
    report, folder = run(base__source=str(encoder), base__architecture="encoder", method="full")
    model = AutoModelForSequenceClassification.from_pretrained(folder.root, dtype=torch.float32).eval()
    test, scale = examples.read(folder, "test"), report.card["scale"]
    with torch.inference_mode():
        scores = np.array([model(input_ids=torch.tensor([ids])).logits.item() for ids in test.token_ids])
    told = pq.read_table(folder.predictions)["predicted"].to_numpy()
    np.testing.assert_allclose(told, scale["mean"] + scale["std"] * scores, atol=1e-3)
    assert scores.std() > 0


def test_training_stops_when_validation_no_longer_improves_and_keeps_the_best(run):
    report, folder = run(
        training__patience=1, training__epochs=50, training__learning_rate=1e-9, training__batch_rows=64
    )
    trained = report.trained
    assert trained.stopped_early
    told = (
        f"stopped early, after step {trained.steps} of {trained.steps_planned}; best at step "
        f"{trained.best_step}"
    )
    assert show.training(report).caption == told
    few = {name: part.rows for name, part in report.held_out.directions.items() if part.rows < 30}
    assert few and any(
        all(f"{name} {rows}" in warning for name, rows in few.items())
        for warning in report.warnings
        if warning.startswith("few rows are held out (below 30): ")
    )
    assert trained.steps < trained.steps_planned == 200
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    told = {line["step"]: line["validation_spearman"] for line in lines if "validation_spearman" in line}
    assert trained.validation_spearman == max(told.values()) == told[trained.best_step]


def test_micro_batches_add_up_to_the_same_step(run):
    """In float32 nothing but the order of sums differs. Gradients are clipped at every step, so that their
    scale counts, and the last step of an epoch has fewer rows than the others."""
    settings = {"training__gradient_norm": 0.1, "training__learning_rate": 1e-3}
    told = {}
    for rows in (None, 8):
        report, folder = run(f"by-{rows}", training__micro_batch_rows=rows, **settings)
        assert report.rows["train"] % 32, "a last step of fewer rows"
        lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
        told[rows] = {
            name: [line[name] for line in lines if name in line] for name in ("loss", "validation_loss")
        }
    for name, losses in told[None].items():
        assert max(losses) > 1.02 * min(losses), "it learns"
        np.testing.assert_allclose(told[8][name], losses, rtol=1e-4)


def _killed(spec, place):
    os.environ[failpoints.VARIABLE] = place
    patch = pytest.MonkeyPatch()
    in_process(patch)
    train(spec, Options(), BARS)


def test_a_killed_training_goes_on_from_its_last_checkpoint_to_the_same_end(run, whole, tmp_path):
    spec = make_spec(tmp_path, output__uri=str(tmp_path / "killed"))
    process = multiprocessing.get_context("spawn").Process(target=_killed, args=(spec, "train.step:11"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    folder = TrainingFolder(tmp_path / "killed")
    torn = folder.checkpoints / "checkpoint-11"
    torn.mkdir()
    with open(folder.log, "a") as file:
        file.write('{"step": 11, "lo')
    assert not folder.card.exists()

    report, folder = run("killed")
    lines = [json.loads(line) for line in folder.log.read_text().splitlines()]
    begins = [line["step"] for line in lines if "of" in line]
    per_epoch = report.trained.steps_planned // 2
    assert begins == [0, per_epoch]  # the first epoch is not done again
    assert not torn.exists()
    found, expected = (
        pq.read_table(one.predictions) for one in (folder, TrainingFolder(whole[1] / "router"))
    )
    np.testing.assert_allclose(found["predicted"].to_numpy(), expected["predicted"].to_numpy(), atol=1e-4)


def test_a_finished_training_is_left_alone_and_another_spec_is_refused(run, whole, tmp_path):
    report, folder = whole[0], TrainingFolder(shutil.copytree(whole[1] / "router", tmp_path / "router"))
    before = folder.card.stat().st_mtime_ns
    outcome = train(make_spec(tmp_path, workers__count=2), Options(), BARS)
    assert (outcome.new, outcome.report) == (False, report)
    assert folder.card.stat().st_mtime_ns == before
    with pytest.raises(OutputError) as error:
        run(training__seed=5, lora__rank=4)
    assert "training.seed: was 0, is 5" in str(error.value)
    assert "lora.rank: was 8, is 4" in str(error.value)
    write_labels(tmp_path / "labels.parquet", 301)
    with pytest.raises(OutputError, match="label tables: was"):
        run()


def test_what_is_not_a_training_is_not_written_over(run, tmp_path):
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty, and not the output of a training"):
        run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base__source": "./nowhere"}, "base.source .*nowhere: no such folder"),
        (
            {"training__max_length_tokens": 4096},
            "training.max_length_tokens 4096: .* reads 512 tokens at most",
        ),
        ({"lora__target_modules": ["nothing"]}, r"lora.target_modules \['nothing'\]: "),
    ],
)
def test_a_base_that_cannot_be_trained_so(run, settings, message):
    with pytest.raises(ModelError, match=message):
        run(**settings)
