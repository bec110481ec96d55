"""COMET checkpoints as scorers, run by unbabel-comet in the quality environment.

This module is imported there, and imports only what is installed there. As in COMET, higher is better.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.fetched import local
from routelmt_batch.tokens import controls, hide

Samples = list[dict[str, str]]
_COLUMNS = {"src": "source", "mt": "hypothesis", "ref": "reference"}
SENTINEL = "sentinel_regression_metric"
# Classes (`class_identifier` of hparams.yaml) that read their texts as one sequence.
_JOINED = ("unified_metric", "xcomet_metric")


def segments_of(hparams: Mapping[str, Any]) -> tuple[str, ...]:
    """The texts (mt, src, ref) that a checkpoint's class reads; empty: the class is not supported."""
    match hparams.get("class_identifier"):
        case "regression_metric" | "xcomet_metric":
            return ("mt", "src", "ref")
        case "referenceless_regression_metric":
            return ("mt", "src")
        case "unified_metric":
            given = hparams.get("input_segments", ("src", "ref"))
            return ("mt", *(name for name in ("src", "ref") if name in given))
        case "sentinel_regression_metric":
            return (hparams.get("sent_to_use", "mt"),)
    return ()


@dataclass(frozen=True)
class Checkpoint:
    """A COMET checkpoint and how to run it. It is pickled into an engine's process and loaded there, once.

    Attributes:
        source: its .ckpt file (a path, or a URI of a fetched model), or its hub name.
        name: the hub name, or its folder's name.
        kind: its class in hparams.yaml.
        segments: the texts that it reads.
        sha256: the hash of the .ckpt file.
        dtype: the encoder's type.
        batch_tokens, batch_rows: the most of one forward pass, if every text had the maximum length.
    """

    source: str
    name: str
    kind: str
    segments: tuple[str, ...]
    sha256: str
    dtype: str = "float32"
    batch_tokens: int = 16384
    batch_rows: int = 256

    def signature(self) -> str:
        return f"class {self.kind}, {self.dtype}, sha256 {self.sha256}"

    def load(self) -> Any:
        return _load(self)

    def predict(self, samples: Samples) -> npt.NDArray[np.float64]:
        """The model's scores. The library sorts the samples by length."""
        import torch

        model = self.load()
        rows = max(1, min(self.batch_rows, self.batch_tokens // _limit(model)))
        prediction = model.predict(
            samples,
            batch_size=rows,
            gpus=int(torch.cuda.is_available()),
            num_workers=0,
            progress_bar=False,
        )
        return np.array(prediction["scores"], np.float64)

    def cuts(self, samples: Samples) -> npt.NDArray[np.bool_]:
        """Marks the samples that are longer than the model reads: COMET cuts them without a warning.

        Each text is cut at the encoder's limit; several texts that form one sequence are cut together, at the
        encoder's positions (comet/encoders/base.py, prepare_sample and concat_sequences).
        """
        model = self.load()
        tokenizer = model.encoder.tokenizer
        lengths = np.array(
            [
                [len(ids) for ids in tokenizer([row[name] for row in samples], verbose=False)["input_ids"]]
                for name in self.segments
            ]
        )
        cut = np.any(lengths > _limit(model), axis=0)
        if self.kind in _JOINED:
            # The texts without their own two special tokens, two around the whole, and the separators.
            between = (len(self.segments) - 1) * model.encoder.size_separator
            cut |= (lengths - 2).sum(axis=0) + 2 + between > model.encoder.max_positions
        return np.asarray(cut)


@dataclass(frozen=True)
class Comet:
    """Quality of a translation, x100. See metric.Metric."""

    checkpoint: Checkpoint
    version: str
    python: str

    @property
    def name(self) -> str:
        return f"comet:{self.checkpoint.name}"

    @property
    def needs_reference(self) -> bool:
        return "ref" in self.checkpoint.segments

    def load(self) -> object:
        return self.checkpoint.load()

    def signature(self) -> str:
        return f"{self.name}, {self.checkpoint.signature()}, unbabel-comet {self.version}"

    def __call__(self, rows: pa.Table) -> npt.NDArray[np.float64]:
        return 100 * self.checkpoint.predict(self._samples(rows))

    def cuts(self, rows: pa.Table) -> npt.NDArray[np.bool_]:
        return self.checkpoint.cuts(self._samples(rows))

    def _samples(self, rows: pa.Table) -> Samples:
        texts = {name: rows[_COLUMNS[name]].to_pylist() for name in self.checkpoint.segments}
        return samples_of(texts)


def samples_of(texts: Mapping[str, Sequence[str]]) -> Samples:
    """COMET's input, one sample for each row, from texts by segment."""
    return [dict(zip(texts, values, strict=True)) for values in zip(*texts.values(), strict=True)]


@functools.lru_cache(maxsize=1)
def _load(checkpoint: Checkpoint) -> Any:
    import torch

    # sentinel_metric is a fork of COMET with the same functions.
    library = importlib.import_module("sentinel_metric" if checkpoint.kind == SENTINEL else "comet")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it would log its devices at each call
    source = local(checkpoint.source)
    path = Path(source if source.endswith(".ckpt") else library.download_model(source)).absolute()
    # An encoder's configuration and tokenizer may lie beside the checkpoint, named relative to it.
    with contextlib.chdir(path.parents[1]):
        model = library.load_from_checkpoint(str(path))
    hide(model.encoder.tokenizer, controls(model.encoder.tokenizer))  # texts are data
    if checkpoint.dtype != "float32":
        # Only the encoder: in bfloat16, scores near 0.9 would have steps of 0.4 points.
        model.encoder.to(getattr(torch, checkpoint.dtype))
        model.encoder.register_forward_hook(_in_float32)
    return model


def _in_float32(encoder: Any, inputs: Any, outputs: Any) -> Any:
    import torch
    from lightning_utilities.core.apply_func import apply_to_collection

    return apply_to_collection(outputs, torch.Tensor, lambda it: it.float() if it.is_floating_point() else it)


def _limit(model: Any) -> int:
    """The most tokens of one text, special tokens included."""
    longest = getattr(model.encoder, "max_positions", None)
    return int(model.encoder.tokenizer.model_max_length if longest is None else longest - 2)
