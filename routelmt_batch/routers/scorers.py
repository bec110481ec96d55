"""Routers as scorers: each scores rows from their text or prompt, higher for the large model.

A scorer is a small frozen value that is pickled into its engine's process and loads what it needs there,
once. It reads tables with shard, row, source, source_lang, target_lang, and the prompt's `tokens` if the lane
has a prompter.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from routelmt_batch.engines.lanes import Scores
from routelmt_batch.fetched import commit, local
from routelmt_batch.prompts import Prompter, cut_off
from routelmt_batch.routers.forward import batches, last_token_scores, pooled_scores
from routelmt_batch.routers.word_counts import count_words, words
from routelmt_batch.tokens import load_tokenizer


@dataclass(frozen=True)
class Random:
    """A number in [0, 1) that depends only on seed, shard and row: the same in every run and order."""

    seed: int

    def __call__(self, rows: pa.Table) -> Scores:
        keys = zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True)
        return np.array([draw(self.seed, shard, row) for shard, row in keys], np.float64)


def draw(seed: int, shard: str, row: int) -> float:
    """A row's random number in [0, 1), the same wherever it is drawn."""
    digest = hashlib.blake2b(f"{seed}\0{shard}\0{row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True)
class Length:
    """The number of the source text's tokens by the small model's tokenizer: longer texts first."""

    source: str
    trust_remote_code: bool = False

    def __call__(self, rows: pa.Table) -> Scores:
        tokenizer = load_tokenizer(self.source, self.trust_remote_code)
        ids = tokenizer.ids(rows["source"].to_pylist())
        return np.array([len(tokens) for tokens in ids], np.float64)


@dataclass(frozen=True)
class Rarity:
    """Minus the mean log-frequency of the text's words (add-one smoothed), counted in a corpus.

    Each process reads the corpus once, when its first rows arrive: about 4 million words a second.
    """

    files: tuple[str, ...]
    column: str

    def __call__(self, rows: pa.Table) -> Scores:
        counts, total = count_words(self.files, self.column)
        log_all = math.log(total + len(counts) + 1)
        return np.array([self._rarity(text, counts, log_all) for text in rows["source"].to_pylist()])

    def _rarity(self, text: str, counts: Counter[str], log_all: float) -> float:
        in_text = words(text)
        if not in_text:
            return 0.0  # only digits and punctuation: no rare words
        return sum(log_all - math.log(counts[word] + 1) for word in in_text) / len(in_text)


@dataclass(frozen=True)
class Prefill:
    """Gain or quality (standardised), predicted from a prompt by a linear head on the hidden state of its
    last token (paper, section on RouteLMT). It is one forward pass by transformers; nothing is decoded.

    Prompts of similar lengths form a batch of at most `batch_rows` rows and `batch_tokens` padded tokens.
    """

    source: str
    dtype: str = "float32"
    trust_remote_code: bool = False
    batch_tokens: int = 16384
    batch_rows: int = 256

    def load(self) -> Any:
        return _load("AutoModelForSequenceClassification", self.source, self.dtype, self.trust_remote_code)

    def __call__(self, rows: pa.Table) -> Scores:
        return last_token_scores(self.load(), rows["tokens"].to_pylist(), self.batch_tokens, self.batch_rows)


@dataclass(frozen=True)
class Entropy:
    """Entropy (nats) of the small model's next token at the end of the prompt.

    Prefill only. It uses transformers, because vLLM returns at most 20 log-probabilities a token: the
    sum here runs over the whole vocabulary, in float32 after a forward pass in `dtype`.

    Precision: on the demo's 266 prompts with its small model, entropies (standard deviation 1.48) in
    bfloat16 differ from float32's by 0.021 nats on average and 0.085 at most, with a Spearman correlation of
    0.9997; in float16 by 0.0025 and 0.016, with 0.99998. tests/routers/test_scorers.py measures it again.
    """

    source: str
    dtype: str = "float32"
    trust_remote_code: bool = False

    def load(self) -> Any:
        return _load("AutoModelForCausalLM", self.source, self.dtype, self.trust_remote_code)

    def __call__(self, rows: pa.Table) -> Scores:
        import torch

        model = self.load()
        scores = np.zeros(rows.num_rows)
        for indices, tokens, mask in batches(rows["tokens"].to_pylist(), left=True):
            with torch.inference_mode():
                logits = model(
                    input_ids=tokens.to(model.device),
                    attention_mask=mask.to(model.device),
                    # Positions count from each prompt's own first token, not from the padding.
                    position_ids=(mask.cumsum(1) - 1).clamp(min=0).to(model.device),
                    logits_to_keep=1,
                    use_cache=False,
                ).logits[:, -1]
            log_p = logits.float().log_softmax(-1)
            scores[indices] = -(log_p.exp() * log_p).sum(-1).cpu().numpy()
        return scores


@dataclass(frozen=True)
class Encoder:
    """Gain (standardised) predicted by an encoder that `train` fitted; prompts that are too long are cut."""

    source: str
    template: str
    max_length_tokens: int
    trust_remote_code: bool = False

    def load(self) -> Any:
        return _load("AutoModelForSequenceClassification", self.source, "float32", self.trust_remote_code)

    def __call__(self, rows: pa.Table) -> Scores:
        prompter = Prompter(self.source, self.template, self.trust_remote_code)
        texts = (rows[name].to_pylist() for name in ("source", "source_lang", "target_lang"))
        prompts = [cut_off(tokens, self.max_length_tokens) for tokens in prompter.token_ids(*texts)]
        return pooled_scores(self.load(), prompts)


@functools.lru_cache(maxsize=1)
def _load(kind: str, source: str, dtype: str, trust_remote_code: bool) -> Any:
    import torch
    import transformers

    loader = getattr(transformers, kind)
    model = loader.from_pretrained(
        local(source),
        revision=commit(source),
        dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        trust_remote_code=trust_remote_code,
    )
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
