"""COMET checkpoints as the driver reads them: class, references, hash; what is refused."""

import hashlib
import shutil

import pytest
import yaml

from routelmt_batch.engines import quality
from routelmt_batch.errors import ModelError, UsageError
from routelmt_batch.metrics.comet import segments_of
from routelmt_batch.metrics.metric import describe, open_metric
from routelmt_batch.routers.registry import open_router
from routelmt_batch.spec import Input, Metric, Output, Router, ScoreSpec
from routelmt_batch.store import checkpoints
from tests.conftest import in_quality

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "needs_reference"),
    [("regression", True), ("xcomet", True), ("referenceless", False), ("kiwi", False)],
)
def test_the_checkpoint_says_whether_it_needs_references(comet_models, name, needs_reference):
    metric = open_metric(Metric(source=f"comet:{comet_models / name}"))
    assert metric.needs_reference is needs_reference
    assert metric.python == str(quality.python())
    kind = yaml.safe_load((comet_models / name / "hparams.yaml").read_text())["class_identifier"]
    digest = hashlib.sha256((comet_models / name / "checkpoints/model.ckpt").read_bytes()).hexdigest()
    assert describe(metric) == {
        "name": f"comet:{name}",
        "signature": f"comet:{name}, class {kind}, float32, sha256 {digest}, unbabel-comet 2.2.7",
    }


def test_a_ckpt_file_is_its_folder(comet_models):
    file = comet_models / "kiwi" / "checkpoints" / "model.ckpt"
    assert checkpoints.comet(str(file), "metric") == checkpoints.comet(str(comet_models / "kiwi"), "metric")


def test_a_checkpoint_in_the_hubs_cache_is_read_by_its_name(comet_models, tmp_path, monkeypatch):
    """As huggingface_hub lays it out; nothing is downloaded."""
    digest = hashlib.sha256((comet_models / "kiwi/checkpoints/model.ckpt").read_bytes()).hexdigest()
    model = tmp_path / "models--org--kiwi"
    shutil.copytree(comet_models / "kiwi", model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    (model / "blobs").mkdir()
    shutil.move(model / "snapshots/abc/checkpoints/model.ckpt", model / "blobs" / digest)
    (model / "snapshots/abc/checkpoints/model.ckpt").symlink_to(model / "blobs" / digest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    metric = open_metric(Metric(source="comet:org/kiwi"))
    assert metric.name == "comet:org/kiwi" and digest in metric.signature()


def test_what_is_no_metric_is_refused_with_its_class(comet_models, tmp_path):
    with pytest.raises(ModelError, match=r"metric .*/none: no such folder or .ckpt file"):
        open_metric(Metric(source=f"comet:{tmp_path / 'none'}"))
    with pytest.raises(
        ModelError, match=r"no .*model.ckpt; a COMET checkpoint is a folder with hparams.yaml"
    ):
        open_metric(Metric(source=f"comet:{tmp_path}"))
    with pytest.raises(ModelError, match=r"metric org/absent: .*no such model in the Hugging Face cache"):
        open_metric(Metric(source="comet:org/absent"))
    other = _with_class(comet_models / "kiwi", tmp_path / "other", "ranking_metric")
    with pytest.raises(ModelError, match="its class is ranking_metric, which does not score"):
        open_metric(Metric(source=f"comet:{other}"))
    sentinel = _with_class(comet_models / "kiwi", tmp_path / "sentinel", "sentinel_regression_metric")
    with pytest.raises(
        ModelError, match="sentinel_regression_metric scores a source text, not a translation"
    ):
        open_metric(Metric(source=f"comet:{sentinel}"))


def test_a_sentinel_reads_the_source_alone(comet_models, tmp_path):
    with pytest.raises(ModelError, match="class unified_metric reads mt, src, but a router has only the"):
        _router(comet_models / "kiwi")
    assert _router(comet_models / "source-only").fingerprint()["router's checkpoint"].startswith("class unif")
    sentinel = _with_class(
        comet_models / "kiwi", tmp_path / "s", "sentinel_regression_metric", sent_to_use="src"
    )
    with pytest.raises(UsageError, match=r"package sentinel_metric.*Clone .* -m pip install --no-deps -e"):
        _router(sentinel)


def test_unified_models_always_read_the_translation():
    found = segments_of({"class_identifier": "unified_metric", "input_segments": ["src", "ref"]})
    assert found == ("mt", "src", "ref")


def _router(source):
    pool = Router(kind="sentinel", source=str(source))
    spec = ScoreSpec(name="s", input=Input(uri="i"), output=Output(uri="o"), router=pool)
    return open_router(spec, pool, None, None)


def _with_class(folder, copy, kind, **settings):
    shutil.copytree(folder, copy)
    hparams = yaml.safe_load((copy / "hparams.yaml").read_text()) | {"class_identifier": kind, **settings}
    (copy / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    return copy


def test_texts_with_names_of_control_tokens_are_data(comet_models):
    assert in_quality("control_tokens.py", str(comet_models / "kiwi")) == {"texts": 15, "through": []}
