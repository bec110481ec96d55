"""Runs token ids through a sequence-classification model: padded batches in, one score for each prompt out.

Jobs score with it, and `train` scores with the router that it saved. It knows no text and loads no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from routelmt_batch.engines.lanes import Scores

if TYPE_CHECKING:
    import torch

Prompts = Sequence[Sequence[int]]
_BATCH_TOKENS = 8192


def last_token_scores(
    model: Any, prompts: Prompts, most_tokens: int = _BATCH_TOKENS, most_rows: int = _BATCH_TOKENS
) -> Scores:
    """The scores of a decoder's linear head on the hidden state of each prompt's last token.

    Padding follows the prompt, where a causal model's earlier tokens do not see it: no mask is needed.
    The head computes in float32, whatever the model's dtype.
    """
    import torch

    head = model.score.weight.float()
    scores = np.zeros(len(prompts))
    for indices, tokens, mask in batches(prompts, most_tokens, most_rows):
        with torch.inference_mode():
            states = model.base_model(input_ids=tokens.to(model.device), use_cache=False)[0]
            last = states[torch.arange(len(indices)), mask.sum(1).to(model.device) - 1]
            scores[indices] = (last.float() @ head.T)[:, 0].cpu().numpy()
    return scores


def pooled_scores(model: Any, prompts: Prompts) -> Scores:
    """The scores of an encoder's own head for each prompt."""
    import torch

    scores = np.zeros(len(prompts))
    for indices, tokens, mask in batches(prompts, pad=model.config.pad_token_id or 0):
        with torch.inference_mode():
            logits = model(input_ids=tokens.to(model.device), attention_mask=mask.to(model.device)).logits
        scores[indices] = logits[:, 0].float().cpu().numpy()
    return scores


def batches(
    prompts: Prompts,
    most_tokens: int = _BATCH_TOKENS,
    most_rows: int = _BATCH_TOKENS,
    left: bool = False,
    pad: int = 0,
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]]:
    """Batches of prompts of similar lengths, at most `most_rows` rows and `most_tokens` tokens (padding
    included): the prompts' indices, and token ids and mask as `padded` returns them."""
    lengths = np.array([len(prompt) for prompt in prompts])
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        end = min(len(order), start + most_rows)
        while end > start + 1 and (end - start) * lengths[order[end - 1]] > most_tokens:
            end -= 1
        indices, start = order[start:end], end
        yield indices, *padded([prompts[at] for at in indices], pad, left)


def padded(prompts: Prompts, pad: int = 0, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask (1: a token), rows x longest; padded on the right, or on the left."""
    import torch

    lengths = np.array([[len(prompt)] for prompt in prompts])
    longest = int(lengths.max())
    index = np.arange(longest)
    mask = index >= longest - lengths if left else index < lengths
    tokens = np.full(mask.shape, pad)
    tokens[mask] = np.concatenate(prompts)
    return torch.from_numpy(tokens), torch.from_numpy(mask.astype(np.int64))
