"""Scores of token ids against plain transformers, one prompt at a time."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from routelmt_batch.routers.forward import last_token_scores, padded
from tests.conftest import MODELS

PROMPTS = [[5, 6, 7], [9] * 40, [11, 12], list(range(100, 160)), [5, 6, 7]]


@pytest.mark.parametrize(("most_tokens", "most_rows"), [(8192, 256), (8192, 2), (64, 256), (1, 256)])
def test_a_decoder_scores_a_prompt_the_same_in_any_batch(most_tokens, most_rows):
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / "router", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([ids])).logits.item() for ids in PROMPTS]
    assert len(set(np.round(expected, 3))) == len(PROMPTS) - 1
    found = last_token_scores(model, PROMPTS, most_tokens, most_rows)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_as_transformers_pads(left):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODELS / "small", padding_side="left" if left else "right")
    wanted = tokenizer.pad({"input_ids": PROMPTS}, return_tensors="pt")
    tokens, mask = padded(PROMPTS, tokenizer.pad_token_id, left)
    assert tokens.equal(wanted["input_ids"]) and mask.equal(wanted["attention_mask"])
