"""Pieces of the training tests: label tables whose gain is a function of the words, specs, a small encoder."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from routelmt_batch import fetched
from routelmt_batch.learning.training.spec import TrainSpec, load_train_spec
from routelmt_batch.prompts import LMT_TEMPLATE
from routelmt_batch.store import checkpoints
from tests.conftest import MODELS

SMALL = MODELS / "small"
_WORDS = ("cat", "dog", "house", "tree", "river", "bread", "moon", "book", "hard", "strange")


def made(**changes: Any) -> dict[str, Any]:
    weights = checkpoints.weights_hash(str(SMALL))
    return {
        "metric": {"name": "chrf", "signature": "sentence chrF, test"},
        "models": {
            "small": {"source": "demo/small", "weights": weights},
            "large": {"source": "demo/large", "weights": "ab" * 32},
        },
        "prompt": {"template": LMT_TEMPLATE},
        **changes,
    }


def write_labels(path: Path, rows: int = 300, metadata: dict[str, Any] | None = None, **columns: Any) -> Path:
    """Rows that gain 10 for each `strange` and lose 5 for each `cat`, with noise of 1."""
    draw = random.Random(len(path.name))
    texts = [" ".join(draw.choices(_WORDS, k=draw.randint(3, 8))) + f" {row}." for row in range(rows)]
    gain = [10.0 * text.count("strange") - 5.0 * text.count("cat") + draw.gauss(0, 1) for text in texts]
    table = {
        "source": texts,
        "source_lang": ["en"] * rows,
        "target_lang": [("de", "zh")[row % 2] for row in range(rows)],
        "quality_small": [50 - one for one in gain],
        "quality_large": [50.0] * rows,
        "gain": gain,
    } | columns
    told = {b"routelmt": json.dumps(made() if metadata is None else metadata)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table).replace_schema_metadata(told if metadata != {} else None), path)
    return path


def make_spec(folder: Path, **settings: Any) -> TrainSpec:
    """A spec over `labels.parquet` of the folder; keyword arguments set dotted keys."""
    raw: dict[str, Any] = {
        "name": "test",
        "tables": ["labels.parquet"],
        "output": {"uri": str(folder / "router")},
        "base": {"source": str(SMALL)},
        "training": {
            "epochs": 2,
            "learning_rate": 5e-3,
            "batch_rows": 32,
            "evaluations_per_epoch": 2,
            "max_length_tokens": 128,
            "autocast": "none",
        },
        "workers": {"cpus": 1},
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(raw))
    given = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in settings.items()]
    return load_train_spec(path, given)


def in_process(monkeypatch: Any) -> None:
    """Run the one worker here instead of in Ray."""
    from routelmt_batch.learning.training import train as module

    def run(spec: TrainSpec, folder: Any, rows: int, options: Any, bars: Any) -> None:
        from routelmt_batch.learning.training.trainer import train_loop

        fault = train_loop(
            {
                "spec": spec.model_dump(mode="json"),
                "folder": str(folder.root),
                "threads": 1,
                "models": fetched.copies(spec.base.source),
            }
        )
        if fault:
            raise fault

    monkeypatch.setattr(module, "_fit", run)


def write_encoder(folder: Path) -> Path:
    """A tiny XLM-R of random weights with the demo's vocabulary; its tokenizer closes with an end token."""
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=8192,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    XLMRobertaModel(config).save_pretrained(folder)
    return folder
