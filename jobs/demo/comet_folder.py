"""A COMET checkpoint from scratch, in a folder as unbabel-comet loads it. Runs in the quality environment.

    encoder/                 a small XLM-R: tokenizer and configuration; its weights are in the checkpoint
    hparams.yaml             the class and its settings; `pretrained_model: encoder`, relative to the folder
    checkpoints/model.ckpt   all weights

XLM-R's own weights are not ours and too large for a demo.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comet.models import CometModel
from pytorch_lightning import Trainer
from pytorch_lightning.core.saving import save_hparams_to_yaml
from tokenizers import SentencePieceUnigramTokenizer, processors
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

ENCODER = "encoder"
CHECKPOINT = Path("checkpoints", "model.ckpt")
_MARKS = ["<s>", "<pad>", "</s>", "<unk>"]  # with XLM-R's ids


def make_encoder(folder: Path, texts: Iterable[str], vocabulary: int, positions: int, **config: Any) -> None:
    """An untrained XLM-R encoder below `folder`, its tokenizer trained on the texts."""
    tokenizer = SentencePieceUnigramTokenizer()
    tokenizer.train_from_iterator(
        texts,
        vocab_size=vocabulary,
        special_tokens=[*_MARKS, "<mask>"],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    fast = XLMRobertaTokenizerFast(tokenizer_object=tokenizer._tokenizer, model_max_length=positions)
    fast.save_pretrained(folder / ENCODER)
    # As in XLM-R, positions count from behind the padding token's.
    settings = XLMRobertaConfig(vocab_size=len(fast), max_position_embeddings=positions + 2, **config)
    XLMRobertaModel(settings, add_pooling_layer=False).save_pretrained(folder / ENCODER)


def build(kind: type[CometModel], folder: Path, **settings: Any) -> CometModel:
    """A model of a COMET class on the folder's encoder, its top untrained."""
    with contextlib.chdir(folder):
        return kind(encoder_model="XLM-RoBERTa", pretrained_model=ENCODER, **settings)


def save(model: CometModel, folder: Path) -> None:
    """Write a model as unbabel-comet's load_from_checkpoint reads it."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(folder / CHECKPOINT, weights_only=True)
    save_hparams_to_yaml(folder / "hparams.yaml", model.hparams)
    for weights in (folder / ENCODER).glob("*.safetensors"):
        weights.unlink()  # the checkpoint has them
