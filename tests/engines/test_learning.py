"""Label, evaluate, calibrate and a calibrated job on real engines, against transformers and sacrebleu."""

import json
import math
import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from sacrebleu.metrics import CHRF
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from routelmt_batch.files.write import kept_folder
from routelmt_batch.job import flow
from routelmt_batch.learning.calibrate import calibrate
from routelmt_batch.learning.evaluation.evaluate import Settings, evaluate
from routelmt_batch.learning.labelling.label import label
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load, load_label
from tests.conftest import DEMO, MODELS
from tests.engines.test_vllm import prompt
from tests.oracle import check_report

pytestmark = pytest.mark.engine
BARS = Bars(Console(quiet=True), quiet=True)
ROWS = 150


@pytest.fixture(scope="module")
def labels(tmp_path_factory, ray_session) -> Path:
    """The demo's first rows, labelled by its own models."""
    import contextlib

    from routelmt_batch.engines.pools import Pools
    from routelmt_batch.engines.session import Session

    @contextlib.contextmanager
    def opened(folder):
        with kept_folder(folder.logs) as logs, Session(logs, verbose=True) as session:
            yield Pools(session)

    output = tmp_path_factory.mktemp("labels") / "out"
    models = [f"models.{name}.source={MODELS / name}" for name in ("small", "large")]
    settings = [f"input.uri={DEMO / 'input'}", "run.pools=concurrent", *models]
    spec = load_label(DEMO / "label.yaml", settings, str(output))
    label(spec, flow.Options(limit=ROWS), BARS, opened)
    check_report(output, "label")
    return output / "data"


@pytest.fixture(scope="module")
def rows(labels) -> list[dict]:
    paths = sorted(labels.rglob("*.parquet"), key=lambda path: path.relative_to(labels).as_posix().encode())
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def predicted(rows) -> list[float]:
    """transformers' gain of each labelled row."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "router")
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / "router", dtype=torch.float32)
    scale = json.loads((MODELS / "router" / "routelmt.json").read_text())["scale"]
    found = []
    with torch.no_grad():
        for row in rows:
            if row["gain"] is not None:
                score = model(**tokenizer(prompt(row), return_tensors="pt")).logits
                found.append(scale["mean"] + scale["std"] * float(score[0, 0]))
    return found


def test_labels_are_sacrebleus_scores_of_both_models_translations(rows):
    labelled = [row for row in rows if row["gain"] is not None]
    assert len(rows) == ROWS and len(labelled) > 80
    for row in labelled:
        for name in ("small", "large"):
            score = CHRF().sentence_score(row[f"translation_{name}"], [row["reference"]]).score
            assert row[f"quality_{name}"] == pytest.approx(score, abs=1e-9)
    assert sum(row["translation_small"] != row["translation_large"] for row in labelled) > 40


def test_an_evaluation_ranks_as_transformers_scores_do(labels, rows, predicted, tmp_path, open_engine):
    small = MODELS / "small"
    routers = (f"ours={MODELS / 'router'}", f"length={small}", f"entropy={small}")
    settings = Settings(Decimal("0.3"), routers, resamples=50, dtype="float32")
    found = evaluate([str(labels)], settings, tmp_path / "out", BARS, open_engine)
    gains = [row["gain"] for row in rows if row["gain"] is not None]
    k = math.floor(Decimal("0.3") * len(gains))

    def mean_delta(scores: list[float]) -> float:
        order = sorted(range(len(gains)), key=lambda i: (-scores[i], i))
        return sum(gains[i] for i in order[:k]) / k

    tokenizer = AutoTokenizer.from_pretrained(small)
    lengths = [float(len(tokenizer.tokenize(row["source"]))) for row in rows if row["gain"] is not None]
    assert found.k == k
    for name, scores in (("ours", predicted), ("length", lengths), ("oracle-gain", gains)):
        measured = found.routers[name].overall["mean_delta"].value
        assert measured == pytest.approx(mean_delta(scores), abs=1e-6), name
    assert found.routers["entropy"].overall["spearman"].value is not None


def test_a_calibrated_router_routes_a_job_by_its_threshold(
    labels, predicted, make_spec, tmp_path, open_engine
):
    router = tmp_path / "router"
    shutil.copytree(MODELS / "router", router)
    calibration = calibrate(str(router), [str(labels)], [Decimal("0.3")], 1000, BARS, open_engine)
    threshold = calibration.thresholds["0.3"]
    assert calibration.rows >= len(predicted), "rows without a reference have a score, too"
    card = json.loads((router / "routelmt.json").read_text())
    assert card["calibration"]["thresholds"]["0.3"]["value"] == threshold.value
    assert card["small_model"] == json.loads((MODELS / "router/routelmt.json").read_text())["small_model"]
    assert not (router / "_calibrate").exists()
    spec = load(make_spec(router__source=str(router)), budget_threshold="calibrated", budget_cap="0.9")
    report = flow.run(spec, flow.Options(limit=20), BARS, open_engine).report.as_json()
    for path in (tmp_path / "out" / "data").rglob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            if row["planned_route"]:
                assert (row["planned_route"] == "large") == (row["predicted_gain"] >= threshold.value)
    assert report["budget"]["threshold"] == threshold.value
