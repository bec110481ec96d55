"""Pickled weights are named with their risk, refused from the hub, and loaded where the spec trusts them."""

import shutil
from pathlib import Path

import pytest

from routelmt_batch.errors import ModelError
from routelmt_batch.progress import Bars
from routelmt_batch.spec import Metric, Router, Translator
from routelmt_batch.spec.file import load
from routelmt_batch.store.pickles import check_pickles, pickled
from tests.conftest import MODELS


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def bars(told) -> Bars:
    found = Bars.none()
    found.warn = told.append
    return found


def model(folder: Path, *weights: str) -> Path:
    """A copy of the small model with weight files of other names."""
    shutil.copytree(MODELS / "small", folder)
    (folder / "model.safetensors").unlink()
    for name in weights:
        (folder / name).write_bytes(b"weights")
    return folder


def on_hub(cache: Path, name: str, *weights: str) -> None:
    """As huggingface_hub lays out its cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    model(repository / "snapshots" / "abc", *weights)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.ckpt", "pytorch_model-00001-of-00002.bin"]
)
def test_pickles_in_a_folder_are_named(make_spec, tmp_path, bars, told, name):
    folder = model(tmp_path / "model", name)
    check_pickles(load(make_spec(models__large__source=str(folder))), bars)
    (message,) = told
    assert message.startswith(
        f"models.large {folder}: its weights ({name}) are pickles, and to load one can run"
    )
    assert message.endswith("If you trust them, set models.large.allow_pickle to true")


def test_trusted_pickles_are_loaded_without_a_word(make_spec, tmp_path, bars, told):
    folder = model(tmp_path / "model", "pytorch_model.bin")
    check_pickles(load(make_spec(models__large__source=str(folder), models__large__allow_pickle=True)), bars)
    assert told == []


BOTH = ["model.safetensors", "pytorch_model.bin"]


@pytest.mark.parametrize(
    ("weights", "settings", "names"),
    [
        (BOTH[:1], {}, []),
        (BOTH, {}, []),
        (BOTH, {"engine": {"load_format": "pt"}}, BOTH[1:]),
        (BOTH[1:], {}, BOTH[1:]),
    ],
)
def test_files_that_are_not_loaded_do_not_count(tmp_path, weights, settings, names):
    folder = model(tmp_path / "model", *weights)
    assert pickled(Translator(source=str(folder), **settings)) == names


def test_pickles_on_the_hub_are_refused_unless_their_owner_is_trusted(
    make_spec, tmp_path, monkeypatch, bars, told
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    on_hub(tmp_path, "org/old", "pytorch_model.bin")
    on_hub(tmp_path, "org/new", "model.safetensors")
    check_pickles(load(make_spec(models__small__source="org/new")), bars)
    with pytest.raises(
        ModelError, match=r"models.small org/old: its weights \(pytorch_model.bin\) are pickles"
    ):
        check_pickles(load(make_spec(models__small__source="org/old")), bars)
    check_pickles(load(make_spec(models__small__source="org/old", models__small__allow_pickle=True)), bars)
    assert told == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("comet:Unbabel/XCOMET-XL", ["checkpoints/model.ckpt"]),
        (f"comet:{MODELS / 'comet'}", ["checkpoints/model.ckpt"]),
        ("comet:/models/kiwi/checkpoints/best.ckpt", ["best.ckpt"]),
    ],
)
def test_checkpoints_of_comet_are_pickles(source, names):
    assert pickled(Metric(source=source)) == names
    assert pickled(Router(kind="sentinel", source=source.removeprefix("comet:"))) == names


def test_a_metric_from_the_hub_has_to_be_trusted_and_one_in_a_folder_is_named(make_spec, bars, told):
    guard = {"mode": "hypothesis", "keep_small_above": 60}
    with pytest.raises(ModelError, match=r"set metric.allow_pickle to true"):
        check_pickles(load(make_spec(guard=guard, metric="comet:Unbabel/XCOMET-XL")), bars)
    check_pickles(load(make_spec(guard=guard, metric="chrf")), bars)
    assert told == []
    check_pickles(load(make_spec(guard=guard, metric=f"comet:{MODELS / 'comet'}")), bars)
    assert len(told) == 1 and "metric comet:" in told[0]


@pytest.mark.parametrize("kind", ["length", "random"])
def test_a_router_without_weights_needs_no_trust(make_spec, tmp_path, bars, told, kind):
    folder = model(tmp_path / "model", "pytorch_model.bin")
    check_pickles(load(make_spec(router={"kind": kind, "source": str(folder)})), bars)
    assert told == []


def test_a_run_says_so_before_anything_starts(make_spec, invoke, tmp_path):
    folder = model(tmp_path / "model", "pytorch_model.bin")
    answer = invoke("run", make_spec(models__large__source=str(folder)), "--dry-run")
    assert answer.exit_code == 0 and "warning: models.large" in answer.stderr
    assert "(pytorch_model.bin) are pickles" in answer.stderr
