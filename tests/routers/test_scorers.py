"""Scorers against plain transformers, plain counting and scipy."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from scipy.stats import kstest, spearmanr
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from routelmt_batch.corpus.shards import discover, inspect
from routelmt_batch.corpus.units import read_lines, units
from routelmt_batch.engines.child import tokenized
from routelmt_batch.prompts import LMT_TEMPLATE, Prompter
from routelmt_batch.routers.scorers import Encoder, Entropy, Length, Random, Rarity
from routelmt_batch.spec.file import load
from routelmt_batch.stages.requests import requests
from tests.conftest import DEMO, MODELS

SMALL = str(MODELS / "small")
TEXTS = ["I see a cat.", "Where is the station, please?", "Hi.", "The bread on the table is old. " * 4]


def rows(texts: list[str]) -> pa.Table:
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    prompts = [
        LMT_TEMPLATE.format(source_lang="English", target_lang="German", source=text) for text in texts
    ]
    return pa.table(
        {
            "shard": ["s"] * len(texts),
            "row": list(range(len(texts))),
            "prompt_tokens": pa.nulls(len(texts), pa.int32()),
            "tokens": tokenizer(prompts)["input_ids"],
            "skip": [""] * len(texts),
            "source": texts,
            "source_lang": ["en"] * len(texts),
            "target_lang": ["de"] * len(texts),
        }
    )


def test_random_scores_come_from_seed_shard_and_row_alone():
    table = pa.table({"shard": ["a", "a", "b"] * 1000, "row": list(range(3000))})
    found = Random(1)(table)
    shuffled = np.random.default_rng(0).permutation(3000)
    assert (Random(1)(table.take(pa.array(shuffled))) == found[shuffled]).all()
    assert (Random(2)(table) != found).all()
    assert kstest(found, "uniform").pvalue > 0.01


def test_length_counts_the_source_texts_tokens():
    tokenizer = AutoTokenizer.from_pretrained(SMALL)
    assert Length(SMALL)(rows(TEXTS)).tolist() == [len(tokenizer.tokenize(text)) for text in TEXTS]


def test_rarity_is_the_mean_of_minus_log_frequency(tmp_path):
    corpus = ["the cat sat", "the dog", "cat 猫", None]
    pq.write_table(pa.table({"source": corpus}), tmp_path / "c.parquet")
    counts = Counter(["the", "cat", "sat", "the", "dog", "cat", "猫"])
    total = sum(counts.values()) + len(counts) + 1  # add one, and one for every unseen word

    def expected(text: str) -> float:
        return sum(-math.log((counts[word] + 1) / total) for word in text.split()) / len(text.split())

    texts = ["the cat", "the unicorn", "dog"]
    rarity = Rarity((str(tmp_path / "c.parquet"),), "source")
    np.testing.assert_allclose(rarity(rows(texts)), [expected(text) for text in texts])
    assert rarity(rows(["42!"])) == [0.0]


def test_entropy_is_that_of_the_whole_vocabulary_at_the_prompts_end():
    """Batched and left-padded as a job runs it, against one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32)
    table = rows(TEXTS * 3)
    expected = []
    for prompt in table["tokens"].to_pylist():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        p = logits.softmax(-1)
        expected.append(float(-(p * p.log()).sum()))
    np.testing.assert_allclose(Entropy(SMALL)(table), expected, atol=1e-4)


def test_entropy_in_bfloat16_is_near_float32s():
    """Entropy's docstring and docs/pages/routers.md name the figures: 0.021 nats on average, 0.085 at most, 0.9997."""
    prompts = demo_prompts()
    exact, found = (Entropy(SMALL, dtype)(prompts) for dtype in ("float32", "bfloat16"))
    apart = np.abs(found - exact)
    assert len(prompts) == 266 and exact.std() > 1
    assert apart.mean() < 0.03 and apart.max() < 0.15
    assert spearmanr(exact, found).statistic > 0.999


def demo_prompts() -> pa.Table:
    """The prompts of the demo's input that a job scores."""
    spec = load(DEMO / "job.yaml")
    shards, _ = inspect(discover(spec.input.uri), spec.input)
    found = pa.concat_tables(
        requests(lines, unit.shard.name) for unit in units(shards) for lines in read_lines(unit, spec.input)
    )
    wanted = found.filter(pc.equal(found["skip"], ""))
    _, prompts, _ = tokenized(
        range(wanted.num_rows), wanted, Prompter(SMALL), spec.models.prompt_limit_tokens
    )
    return prompts


@pytest.fixture
def encoder(tmp_path) -> str:
    """A tiny BERT with a word vocabulary and random weights."""
    names = ["[PAD]", "[UNK]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.5,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    fast.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def test_an_encoders_scores_are_transformers_scores(encoder):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = BertForSequenceClassification.from_pretrained(encoder).eval()
    expected = []
    for text in TEXTS:
        tokens = tokenizer(f"German: {text}")["input_ids"]
        tokens = tokens if len(tokens) <= 12 else tokens[:11] + tokens[-1:]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits
        expected.append(float(logits[0, 0]))
    assert len(set(np.round(expected, 3))) == len(TEXTS)
    found = Encoder(encoder, "{target_lang}: {source}", max_length_tokens=12)(rows(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-5)
