"""Model folders, hub names and the router's card, checked before anything starts."""

import hashlib
import json
import shutil

import pytest

from routelmt_batch.errors import ModelError
from routelmt_batch.spec.file import load
from routelmt_batch.stages.recipe import check_models
from routelmt_batch.store import checkpoints
from tests.conftest import MODELS


@pytest.fixture
def router(tmp_path):
    folder = tmp_path / "router"
    shutil.copytree(MODELS / "router", folder)
    return folder


def edit(path, **changes):
    value = json.loads(path.read_text())
    value.update(changes)
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def test_the_demo_models_fit_together(make_spec):
    card = json.loads((MODELS / "router" / "routelmt.json").read_text())
    assert check_models(load(make_spec())).router.scale.std == card["scale"]["std"]
    assert checkpoints.end_tokens(str(MODELS / "small")) == (1,)
    assert checkpoints.context_tokens(str(MODELS / "large")) == 512


def test_the_weights_hash_is_over_names_and_contents():
    digest = hashlib.sha256((MODELS / "small" / "model.safetensors").read_bytes()).hexdigest()
    expected = hashlib.sha256(f"model.safetensors {digest}\n".encode()).hexdigest()
    assert checkpoints.weights_hash(str(MODELS / "small")) == expected


def test_a_hub_cache_is_hashed_by_its_names(tmp_path):
    digest = "ab" * 32
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / digest).write_text("not read")
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(tmp_path / "blobs" / digest)
    expected = hashlib.sha256(f"model.safetensors {digest}\n".encode()).hexdigest()
    assert checkpoints.weights_hash(str(snapshot)) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("models.small.source=./nowhere", r"models\.small\.source .*/nowhere: no such folder"),
        ("models.large.source={models}/lrage", r"/lrage: no such folder; did you mean 'large'\?"),
        ("models.large.source=Nobody/Nothing-1B", "no such model in the Hugging Face cache or on the hub"),
        ("models.large.source={tmp}", r"no config\.json there"),
        ("models.small.max_model_len_tokens=1024", r"max_model_len_tokens 1024: .* reads 512 tokens at most"),
        ("models.small.source={models}/large", "made for another small model"),
        ("prompt.template=Say {{source}}", "trained with the prompt"),
        ("router.source={models}/small", r"has no routelmt\.json"),
    ],
)
def test_what_does_not_fit_is_told(make_spec, tmp_path, setting, message):
    spec = load(make_spec(), [setting.format(tmp=tmp_path, models=MODELS)])
    with pytest.raises(ModelError, match=message):
        check_models(spec)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("routelmt.json", {"target": "quality"}, "predicts quality"),
        ("routelmt.json", {"metric": None}, "missing or wrong: metric"),
        ("config.json", {"problem_type": None}, "problem_type: regression"),
    ],
)
def test_a_router_that_a_job_cannot_use(make_spec, router, file, change, message):
    edit(router / file, **change)
    with pytest.raises(ModelError, match=message):
        check_models(load(make_spec(router__source=str(router))))


def test_a_folder_without_weights(make_spec, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="no weights there"):
        check_models(load(make_spec(models__large__source=str(folder))))


def test_a_broken_card_is_told(make_spec, router):
    (router / "routelmt.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        check_models(load(make_spec(router__source=str(router))))
