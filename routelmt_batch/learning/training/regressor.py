"""The model that is trained: a sequence-classification model with one label, its adapter, its saved form.

It knows no prompts, tables or workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from routelmt_batch.errors import ModelError
from routelmt_batch.fetched import commit, local
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.store import checkpoints

ADAPTER = "adapter"


def tokenizer_of(spec: TrainSpec) -> Any:
    """The base's tokenizer. If it has no padding token, the end token pads."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local(spec.base.source), revision=commit(spec.base.source))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(
                f"base.source {spec.base.source}: its tokenizer has no padding and no end token; "
                "take another base"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def plain(spec: TrainSpec, source: str | None = None) -> Any:
    """The base with a new head, or the model of a checkpoint; float32 weights.

    The head has no activation (`problem_type: regression`) and reads the last token that is not
    padding (decoders) or the first (encoders).
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    try:
        return AutoModelForSequenceClassification.from_pretrained(
            source or local(spec.base.source),
            num_labels=1,
            problem_type="regression",
            pad_token_id=tokenizer_of(spec).pad_token_id,
            dtype=torch.float32,
        )
    except ValueError as error:
        kind = checkpoints.config(spec.base.source).get("model_type")
        raise ModelError(
            f"base.source {spec.base.source}: transformers has no sequence-classification model for "
            f"model_type {kind!r}; take another base ({str(error).splitlines()[0][:200]})"
        ) from None


def trainable(spec: TrainSpec) -> Any:
    """The model, prepared for the spec's training method."""
    model = plain(spec)
    model.config.use_cache = False  # nothing is decoded
    if spec.method == "head_only":
        model.base_model.requires_grad_(False)
    if spec.method != "lora":
        return model
    from peft import LoraConfig, TaskType, get_peft_model

    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS,  # trains the head, too, and keeps it with the adapter
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=spec.lora.target_modules,
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise ModelError(f"lora.target_modules {spec.lora.target_modules!r}: {error}") from None


def save(spec: TrainSpec, checkpoint: Path, root: Path) -> None:
    """Write a checkpoint of `trainable` as a router's model: merged, in the base's own dtype."""
    import torch

    model = plain(spec, None if spec.method == "lora" else str(checkpoint))
    if spec.method == "lora":
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(model, str(checkpoint))
        _save_adapter(adapted, root / ADAPTER, spec.base.name)
        model = adapted.merge_and_unload()
    base = checkpoints.config(spec.base.source)
    name = base.get("dtype") or base.get("torch_dtype") or "float32"
    model.config.use_cache = base.get("use_cache", True)
    model.to(getattr(torch, name)).save_pretrained(str(root))
    tokenizer_of(spec).save_pretrained(str(root))
    for weights in root.rglob("*.safetensors"):  # safetensors lets only the owner read them
        weights.chmod((root / "config.json").stat().st_mode)


def _save_adapter(adapted: Any, folder: Path, base: str) -> None:
    """The adapter as peft writes it, naming its base without this machine's paths."""
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = base
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form; the router has its own card
