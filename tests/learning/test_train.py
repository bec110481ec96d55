"""Training through Ray Train: the saved router is what it says it is, an interrupted run goes on."""

import contextlib
import json
import os
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from routelmt_batch.errors import Interrupted, ModelError, UsageError
from routelmt_batch.job.flow import Options
from routelmt_batch.learning.training import examples
from routelmt_batch.learning.training.folder import TrainingFolder
from routelmt_batch.learning.training.model_card import PLOT, PLOT_BY_DIRECTION
from routelmt_batch.learning.training.train import train
from routelmt_batch.progress import Bars
from routelmt_batch.routers.card import read_card
from tests.learning.training import SMALL, in_process, make_spec, write_encoder, write_labels

pytestmark = pytest.mark.engine
OPTIONS = Options(verbose=True)
LONG = {"training__epochs": 8, "training__patience": None}


class Stopping(Bars):
    """Bars that a signal stops at a step; it keeps what it is told."""

    def __init__(self, step: int) -> None:
        super().__init__(Console(quiet=True), quiet=True)
        self.step = step
        self.notes: list[str] = []

    def steps(self, name, total, done=0, unit="steps"):
        if name != "train":
            return super().steps(name, total, done, unit)

        @contextlib.contextmanager
        def shown():
            at = done

            def tell(steps, note):
                nonlocal at
                at += steps
                self.notes.append(note)
                if at >= self.step:
                    raise Interrupted("stopped by SIGTERM", 143)

            yield tell

        return shown()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def trained(ray_session, work):
    """A LoRA router, interrupted in its second epoch and gone on with: (report, folder, notes)."""
    write_labels(work / "labels.parquet")
    spec = make_spec(work, **LONG)
    bars = Stopping(step=11)
    with pytest.raises(Interrupted):
        train(spec, OPTIONS, bars)
    assert not (work / "router" / "routelmt.json").exists()
    _free_what_it_held()
    outcome = train(spec, OPTIONS, Bars.none())
    assert outcome.new
    return outcome.report, TrainingFolder(work / "router"), bars.notes


def _free_what_it_held():
    """Ray gives a killed run's CPUs back when its driver ends, and this one goes on."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    for key, group in placement_group_table().items():
        if group["state"] == "CREATED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(key)))


def test_the_last_line_has_the_figures_on_all_held_out_rows(trained):
    report, *_ = trained
    held_out = report.held_out
    overall = held_out.overall
    assert report.figures == {"rows": overall.rows, "spearman": overall.spearman, "r2": overall.r2}
    assert overall.rows == sum(part.rows for part in held_out.directions.values())


def lines_of(folder):
    return [json.loads(line) for line in folder.log.read_text().splitlines()]


def test_the_interrupted_training_went_on_and_ended_as_one_that_was_not(trained, work, monkeypatch):
    report, folder, _ = trained
    first, second = (line for line in lines_of(folder) if "of" in line)
    assert first["step"] == 0
    assert second["step"] in range(8, 60, 4)  # 8 steps an epoch, a checkpoint each 4
    assert first["of"] == second["of"] == report.trained.steps == 64
    in_process(monkeypatch)
    whole = train(make_spec(work, output__uri=str(work / "whole"), **LONG), OPTIONS, Bars.none()).report
    found = pq.read_table(folder.predictions)["predicted"].to_numpy()
    expected = pq.read_table(work / "whole" / "_train" / "predictions.parquet")["predicted"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert whole.trained.best_step == report.trained.best_step


def test_the_bar_tells_losses(trained):
    _, _, notes = trained
    assert re.fullmatch(
        r"loss \d\.\d{3}, validation loss \d\.\d{3}, Spearman -?\d\.\d{3}, rate \d\.\de-\d\d", notes[-1]
    )


def plain_scores(model, token_ids):
    """One row at a time, so that nothing is padded."""
    import torch

    with torch.inference_mode():
        return np.array([model(input_ids=torch.tensor([ids])).logits.item() for ids in token_ids])


def test_the_saved_folder_predicts_what_the_report_says(trained):
    """Oracle: plain transformers, row by row, and scipy."""
    import torch
    from transformers import AutoModelForSequenceClassification

    report, folder, _ = trained
    model = AutoModelForSequenceClassification.from_pretrained(folder.root, dtype=torch.float32)
    test = examples.read(folder, "test")
    card = json.loads((folder.root / "routelmt.json").read_text())
    predicted = card["scale"]["mean"] + card["scale"]["std"] * plain_scores(model, test.token_ids)
    told = pq.read_table(folder.predictions)["predicted"].to_numpy()
    np.testing.assert_allclose(told, predicted, atol=1e-3)
    overall = report.held_out.overall
    assert overall.rows == len(test.targets)
    assert overall.spearman == pytest.approx(stats.spearmanr(predicted, test.targets).statistic, abs=1e-3)
    assert overall.mae == pytest.approx(np.abs(predicted - test.targets).mean(), abs=1e-3)
    assert overall.spearman > 0.6  # it learnt that some words gain
    assert sum(one.rows for one in report.held_out.directions.values()) == overall.rows


def test_base_and_adapter_by_plain_peft_give_the_merged_model(trained):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    _, folder, _ = trained
    base = AutoModelForSequenceClassification.from_pretrained(
        SMALL, num_labels=1, problem_type="regression", dtype=torch.float32
    )
    adapted = PeftModel.from_pretrained(base, folder.root / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(folder.root, dtype=torch.float32)
    ids = examples.read(folder, "test").token_ids
    # The merged weights are the base's bfloat16: eight bits.
    np.testing.assert_allclose(plain_scores(adapted, ids), plain_scores(merged, ids), atol=0.05)


def test_the_folder_says_what_it_is(trained):
    report, folder, _ = trained
    config = json.loads((folder.root / "config.json").read_text())
    assert (config["problem_type"], config["dtype"]) == ("regression", "bfloat16")
    card = read_card(str(folder.root))
    assert card.metric.name == "chrf"
    assert card.directions == ("en-de", "en-zh")
    raw = json.loads((folder.root / "routelmt.json").read_text())
    assert (raw["kind"], raw["large_model"]["name"]) == ("routelmt", "demo/large")
    assert raw["training"]["rows"] == report.rows
    plots = [f"{stem}.{kind}" for stem in (PLOT, PLOT_BY_DIRECTION) for kind in ("png", "svg")]
    for name in (*plots, "tokenizer.json"):
        assert (folder.root / name).stat().st_size > 1000
    readme = (folder.root / "README.md").read_text()
    assert "| en-zh |" in readme
    assert f"![Predicted against realised gain]({PLOT}.png)" in readme
    assert f"![The same, each direction alone]({PLOT_BY_DIRECTION}.png)" in readme
    told = [folder.root / name for name in ("README.md", "routelmt.json", "adapter/adapter_config.json")]
    assert not any(str(folder.root.parent) in path.read_text() for path in told)


def test_two_workers_train_an_encoder(ray_session, tmp_path):
    write_labels(tmp_path / "labels.parquet")
    encoder = write_encoder(tmp_path / "encoder")
    spec = make_spec(
        tmp_path,
        base__source=str(encoder),
        base__architecture="encoder",
        method="full",
        workers__count=2,
        training__autocast="bfloat16",
        training__evaluations_per_epoch=1,
    )
    report = train(spec, OPTIONS, Bars.none()).report
    assert report.trained.steps == report.trained.steps_planned == 16
    assert report.card["kind"] == "encoder"
    assert report.card["small_model"]["name"] == "demo/small"
    config = json.loads((tmp_path / "router" / "config.json").read_text())
    assert (config["architectures"], config["problem_type"]) == (
        ["XLMRobertaForSequenceClassification"],
        "regression",
    )


def test_more_than_this_machine_has_is_refused(ray_session, tmp_path):
    write_labels(tmp_path / "labels.parquet")
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(UsageError, match=rf"CPUs needed: 500 for 1 workers; this machine has {cores}\."):
        train(make_spec(tmp_path, workers__cpus=500), OPTIONS, Bars.none())


def test_a_fault_that_no_second_try_mends_arrives_in_words_at_once(ray_session, tmp_path):
    write_labels(tmp_path / "labels.parquet")
    with pytest.raises(ModelError, match=r"^lora.target_modules \['nothing'\]") as error:
        train(make_spec(tmp_path, lora__target_modules=["nothing"]), OPTIONS, Bars.none())
    assert "Traceback" not in str(error.value) and "\x1b" not in str(error.value)
