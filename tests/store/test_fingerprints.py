"""What a text can depend on is in the fingerprints: a change of any of it is refused, and named."""

import json
import shutil
from pathlib import Path

import pytest

from routelmt_batch import fetched
from routelmt_batch.errors import SpecError, WorkChanged
from routelmt_batch.rows import SCORES, TRANSLATIONS
from routelmt_batch.spec.file import load
from routelmt_batch.spec.values import secrets
from routelmt_batch.stages.recipe import check_models
from routelmt_batch.store import checkpoints
from routelmt_batch.store.harmless import HARMLESS
from routelmt_batch.store.manifest import check_stage
from tests.conftest import MODELS

NAMES = ("small", "large", "router")
FILES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.json", "chat_template.jinja", "model.safetensors.index.json"),
    *("additional_chat_templates/rag.jinja", "modeling_own.py", "tokenization_own.py", "own/layers.py"),
]
SETTINGS = {
    "load_format": "dummy",
    "tokenizer": "someone/tokenizer",
    "tokenizer_mode": "slow",
    "tokenizer_revision": "v2",
    "code_revision": "v2",
    "override_generation_config": {"repetition_penalty": 1.1},
    "generation_config": "vllm",
    "pooler_config": {"use_activation": False},
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 2},
    "logits_processors": ["own:Processor"],
    "model_impl": "transformers",
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "hf_overrides": {"rope_theta": 1},
    "hf_config_path": "someone/config",
    "attention_backend": "TRITON_ATTN",
    "seed": 3,
    "an_argument_of_a_later_version": 1,
}


@pytest.fixture
def models(tmp_path):
    """The demo's models, in folders that a test may change. Their weights are links."""
    for name in NAMES:
        shutil.copytree(
            MODELS / name, tmp_path / "models" / name, ignore=lambda *_: ["model.safetensors", "adapter"]
        )
        (tmp_path / "models" / name / "model.safetensors").symlink_to(MODELS / name / "model.safetensors")
    return tmp_path / "models"


@pytest.fixture
def fingerprints(make_spec, models, monkeypatch):
    """The fingerprints of a job with some settings, taken as by a new process. vLLM may know the arguments or
    not."""
    monkeypatch.setattr("routelmt_batch.stages.recipe.check_engines", lambda models: None)

    def now(**settings):
        for remembered in (checkpoints.weights_hash, checkpoints.texts, checkpoints.content):
            remembered.cache_clear()
        sources = {f"models__{name}__source": str(models / name) for name in ("small", "large")}
        spec = make_spec(**(sources | {"router__source": str(models / "router")} | settings))
        return check_models(load(spec)).fingerprints([], None)

    return now


def refused(before, now, stage) -> str:
    with pytest.raises(WorkChanged) as caught:
        check_stage("out", stage, {"fingerprints": before}, now)
    return str(caught.value)


def change(path: Path) -> None:
    """Another content that is as good: a blank more. A file that is not there comes to be."""
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + "\n")


@pytest.mark.parametrize("model", NAMES)
def test_a_changed_file_is_named(fingerprints, models, model):
    stage = SCORES.name if model == "router" else TRANSLATIONS.name
    key = model if model == "router" else f"models.{model}"
    before = fingerprints()
    for name in FILES:
        change(models / model / name)
        now = fingerprints()
        message = refused(before, now, stage)
        assert [line.split(": was")[0] for line in message.splitlines() if ": was" in line] == [
            f"  {key}'s {name}"
        ]
        before = now
    for name in FILES[-3:]:
        (models / model / name).unlink()
        now = fingerprints()
        assert f"  {key}'s {name}: was '" in refused(before, now, stage)
        before = now


@pytest.mark.parametrize("model", NAMES)
def test_changed_weights_are_named(fingerprints, models, model):
    before = fingerprints(router__kind="length", router__source=str(models / "router"))
    other = "small" if model == "large" else "large"
    (models / model / "model.safetensors").unlink()
    (models / model / "model.safetensors").symlink_to(MODELS / other / "model.safetensors")
    after = fingerprints(router__kind="length", router__source=str(models / "router"))
    key, stage = ("router", SCORES) if model == "router" else (f"models.{model}", TRANSLATIONS)
    assert f"{key}'s weights: was" in refused(before, after, stage.name)


@pytest.mark.parametrize("model", ["small", "large"])
def test_a_changed_argument_of_vllm_is_named(fingerprints, model):
    before = fingerprints()
    for key, value in SETTINGS.items():
        now = fingerprints(**{f"models__{model}__engine": {key: value}})
        message = refused(before, now, TRANSLATIONS.name)
        assert f"  models.{model}.engine.{key}: was None, is {value!r}" in message
        assert message.count(": was") == 1


def test_what_a_setting_names_counts_with_its_content(fingerprints, models, tmp_path):
    shutil.copytree(models / "small", tmp_path / "draft", symlinks=True)
    draft = {"model": str(tmp_path / "draft"), "num_speculative_tokens": 2}
    before = fingerprints(models__large__engine__speculative_config=draft)
    change(tmp_path / "draft" / "tokenizer.json")
    now = fingerprints(models__large__engine__speculative_config=draft)
    assert f"engine.speculative_config: {tmp_path / 'draft'}: was" in refused(before, now, TRANSLATIONS.name)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("models__small__dtype", "float16", "models.small.dtype"),
        ("models__large__max_output_tokens", 32, "models.large.max_output_tokens"),
        ("models__large__max_model_len_tokens", 128, "models.large.max_model_len_tokens"),
        ("models__small__trust_remote_code", True, "models.small.trust_remote_code"),
        ("input__columns__source", "id", "input.columns"),
        ("input__target_lang", "fr", "input.target_lang"),
    ],
)
def test_a_changed_setting_is_named(fingerprints, key, value, named):
    assert f"  {named}: was" in refused(fingerprints(), fingerprints(**{key: value}), TRANSLATIONS.name)


def test_harmless_arguments_and_files_are_no_change(fingerprints, models):
    before = fingerprints()
    change(models / "small" / "README.md")
    (models / "router" / "_train").mkdir()
    change(models / "router" / "_train" / "state.json")
    card = json.loads((models / "router" / "routelmt.json").read_text())
    (models / "router" / "routelmt.json").write_text(json.dumps(card | {"calibration": None}))
    harmless = {key: 1 for key in HARMLESS if not secrets([key])}
    settings = {f"models__{name}__engine": harmless for name in ("small", "large")}
    assert fingerprints(**settings) == before


@pytest.mark.slow
def test_harmless_arguments_are_arguments_of_vllm():
    import dataclasses

    from vllm import EngineArgs

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    assert HARMLESS.keys() <= known and SETTINGS.keys() - known == {"an_argument_of_a_later_version"}
    assert all(HARMLESS.values())


@pytest.fixture
def on_hub(hub, models, fingerprints, monkeypatch):
    """The small model as a repository of a hub. Fingerprints are taken as by a new process."""
    monkeypatch.setattr(fetched, "_COPIES", {})

    def files(**more):
        kept = {path.name: path.read_bytes() for path in (models / "small").iterdir() if path.is_file()}
        return kept | {name: text.encode() for name, text in more.items()}

    def taken(source):
        fetched._COPIES.clear()
        checkpoints._hub_file.cache_clear()
        length = {"router__kind": "length", "router__source": str(models / "router")}
        return fingerprints(models__small__source=source, **length)

    return hub.dataset("ours/small"), files, taken


def test_a_hub_name_is_its_commit(on_hub):
    repository, files, taken = on_hub
    first = repository.commit(files())
    before = taken("ours/small")
    assert before[TRANSLATIONS.name]["models.small's commit"] == first
    assert fetched.commit("ours/small") == first and fetched.local("ours/small") == "ours/small"
    second = repository.commit(files(**{"vocab.json": "{}"}), "next")
    now = taken("ours/small@next")
    message = refused(before, now, TRANSLATIONS.name)
    assert f"models.small's commit: was '{first}', is '{second}'" in message
    # The former commit can still be named.
    assert taken(f"ours/small@{first}") == before
    assert fetched.local(f"ours/small@{first}") == "ours/small"
    assert fetched.commit(f"ours/small@{first}") == first


def test_weights_of_a_hub_name_are_those_of_its_revision(on_hub):
    repository, files, taken = on_hub
    repository.commit(files())
    repository.commit(files() | {"model.safetensors": b"others"}, "next")
    before, now = taken("ours/small"), taken("ours/small@next")
    assert before[TRANSLATIONS.name]["models.small's weights"] == checkpoints.weights_hash(
        str(MODELS / "small")
    )
    assert "models.small's weights: was" in refused(before, now, TRANSLATIONS.name)


def test_a_revision_is_part_of_the_name(make_spec):
    with pytest.raises(SpecError, match=r"engine\.revision has its own key: source: OWNER/NAME@REVISION"):
        load(make_spec(models__small__engine={"revision": "v2"}))
