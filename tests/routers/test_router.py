"""Routers as a job opens them: what their scores mean, and what does not fit."""

import json
import re
import shutil
from pathlib import Path

import pytest

from routelmt_batch.errors import ModelError, SpecError
from routelmt_batch.kinds import KINDS
from routelmt_batch.progress import Bars
from routelmt_batch.routers.registry import ROUTERS
from routelmt_batch.spec.file import load
from routelmt_batch.stages.recipe import check_models
from routelmt_batch.store import checkpoints
from tests.conftest import MODELS


@pytest.fixture
def as_kind(tmp_path):
    """The demo's router with another kind and target on its card."""

    def make(kind: str, target: str) -> str:
        folder = tmp_path / f"{kind}-{target}"
        shutil.copytree(MODELS / "router", folder)
        card = json.loads((folder / "routelmt.json").read_text())
        (folder / "routelmt.json").write_text(json.dumps(card | {"kind": kind, "target": target}))
        return str(folder)

    return make


def test_where_the_small_model_is_predicted_good_a_quality_router_scores_low(make_spec, as_kind):
    gain = check_models(load(make_spec())).router
    quality = check_models(
        load(make_spec(router__kind="routelmt-q", router__source=as_kind("routelmt-q", "quality")))
    ).router
    assert (quality.scale.mean, quality.scale.std) == (-gain.scale.mean, -gain.scale.std)
    assert gain.predicts_gain and not quality.predicts_gain


def test_an_encoder_is_read_by_its_cards_target(make_spec, as_kind):
    found = {
        target: check_models(
            load(make_spec(router__kind="encoder", router__source=as_kind("encoder", target)))
        ).router
        for target in ("gain", "quality")
    }
    assert found["gain"].scale.std == -found["quality"].scale.std
    assert found["gain"].predicts_gain and not found["quality"].predicts_gain


def test_a_router_whose_small_model_nobody_told_routes_with_a_warning(make_spec, as_kind):
    source = Path(as_kind("encoder", "gain"))
    card = json.loads((source / "routelmt.json").read_text())
    card["small_model"] = {"name": "unknown", "weights": "unknown"}
    (source / "routelmt.json").write_text(json.dumps(card))
    told = []
    bars = Bars.none()
    bars.warn = told.append
    check_models(load(make_spec(router__kind="encoder", router__source=str(source))), bars)
    assert len(told) == 1 and "do not record their small model" in told[0]
    told.clear()
    check_models(load(make_spec()), bars)
    assert not told


@pytest.mark.parametrize(
    ("kind", "target", "asked"), [("routelmt-q", "quality", "routelmt"), ("routelmt", "gain", "encoder")]
)
def test_a_router_of_another_kind_is_refused(make_spec, as_kind, kind, target, asked):
    spec = load(make_spec(router__kind=asked, router__source=as_kind(kind, target)))
    with pytest.raises(ModelError, match=f"predicts {target} .kind {kind}., but router.kind is {asked}"):
        check_models(spec)


def test_the_small_model_is_a_length_or_entropy_routers_own(make_spec):
    for kind in ("length", "entropy"):
        spec = load(make_spec(router={"kind": kind}))
        router = check_models(spec).router
        assert router.pool.source == spec.models.small.source
        weights = router.fingerprint()["router's weights"]
        assert weights == checkpoints.weights_hash(spec.models.small.source)


def test_every_kind_that_a_spec_may_name_can_be_opened():
    assert ROUTERS.keys() == KINDS.keys()


def test_a_fingerprint_names_all_that_scores_depend_on(make_spec, as_kind, corpus):
    model = ["router's weights", "router.dtype", "router.trust_remote_code"]
    files = {f"router's {name}" for name in ("config.json", "tokenizer.json", "tokenizer_config.json")}
    cut = ["router's prompt", "router's longest prompt in tokens"]
    kinds = {
        "routelmt": (str(MODELS / "router"), model),
        "routelmt-q": (as_kind("routelmt-q", "quality"), model),
        "encoder": (as_kind("encoder", "gain"), [*model, *cut]),
        "length": ("", model),
        "entropy": ("", model),
        "random": ("", ["router.seed"]),
        "rarity": (str(corpus), ["router's corpus"]),
    }
    for kind, (source, names) in kinds.items():
        pool = {"kind": kind, "source": source, "max_model_len_tokens": 100}
        recipe = check_models(load(make_spec(router=pool)))
        found = recipe.router.fingerprint()
        assert names[0] != model[0] or found.keys() >= files
        rest = [name for name in found if not re.search(r"'s .*\.json", name)]
        assert rest == ["router.kind", *names, "router's scale"]
        assert recipe.router.pool.gpus == (0 if kind in ("length", "random", "rarity") else None), kind
        assert recipe.prompt_limit_tokens == (100 if kind.startswith("routelmt") else 256 - 64), kind


def test_oracles_are_for_evaluation(make_spec):
    with pytest.raises(SpecError, match="kind 'oracle-gain': needs references: for evaluation only"):
        load(make_spec(router={"kind": "oracle-gain"}))
    with pytest.raises(SpecError, match="kind rarity needs a source: a corpus to count words in"):
        load(make_spec(router={"kind": "rarity"}))
