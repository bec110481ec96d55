"""Train the demo's reference-free COMET on the label tables. Runs in the quality environment.

    .venv-quality/bin/python jobs/demo/make_comet.py runs/demo-models --out runs/demo-models/comet

unbabel-comet's ReferencelessRegression on a small XLM-R from scratch, in two steps: the encoder learns which
sentences of the translators' text translate one another (in-batch softmax, Guo et al. 2018); then
unbabel-comet's own training fits the whole model to the chrF of both translators' translations. Validation
rows are those of the demo's router. The test rows are read once, for the card.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the data loaders fork

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from comet import load_from_checkpoint
from comet.models import CometModel, ReferencelessRegression
from comet_folder import CHECKPOINT, build, make_encoder, save
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from scipy import stats
from torch.nn import functional

from routelmt_batch.learning.training.split import VALIDATION, sides

MODELS = ("small", "large")
ENCODER = {
    "vocabulary": 8192,
    "positions": 256,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 384,
}
SETTINGS: dict[str, Any] = {
    "nr_frozen_epochs": 0,
    "keep_embeddings_frozen": False,
    "encoder_learning_rate": 5e-4,
    "learning_rate": 5e-4,
    "layerwise_decay": 1.0,
    "layer_norm": False,
    "batch_size": 64,
    "hidden_sizes": [256, 64],
}
MATCH_PAIRS, MATCH_LEARNING_RATE, MATCH_SCALE = 128, 1e-3, 20.0
EXAMPLES = (
    ("Where is the station?", "Wo ist der Bahnhof?"),
    ("Where is the station?", "Wo ist die Katze?"),
    ("我喜欢读书。", "I like reading."),
)
WORK = "_train"
Rows = list[dict[str, Any]]
Samples = list[dict[str, str]]
Pair = tuple[str, str]

CARD = """---
license: apache-2.0
language: [en, de, zh]
library_name: unbabel-comet
---
# routelmt_batch demo: reference-free COMET

A demonstration metric of [routelmt_batch](../../../../README.md): it knows everyday sentences, en-de, de-en,
en-zh and zh-en, and the mistakes of the demo's two translators, and nothing else. unbabel-comet's
`ReferencelessRegression`, {parameters:,} parameters: XLM-R architecture from scratch,
{num_hidden_layers} layers x {hidden_size}, a SentencePiece unigram vocabulary of {vocabulary:,}; it reads
{positions} tokens of a text less its marks. Weights are stored in float16; unbabel-comet's loader reads them
into float32. Checkpoint: SHA-256 `{sha256}`.

## Training

By `jobs/demo/make_comet.py` (seed {seed}), {minutes:.0f} minutes. First the encoder alone: {match_epochs:g}
epochs over the {match_rows:,} sentence pairs of the translators' text, each sentence to find its translation
among {match_pairs} (in-batch softmax both ways, AdamW, learning rate {match_learning_rate:g}). Then all of it
by unbabel-comet's own training, mean squared error on the sentence chrF (over 100) of both translators'
translations of {train_rows:,} rows: batches of {batch_size}, AdamW, learning rate {learning_rate:g},
gradient norm 1, a moving average of the weights (0.998). Of two evaluations an epoch the best by Spearman is
kept: {best:.3f} on both translations of {validation_rows:,} rows, after {epochs:.1f} epochs. These are the
router's validation rows; sentences that translate one another are on one side.

## Held-out figures

Of the stored model, read back by unbabel-comet: its score against sentence chrF, both translations of
{test_rows:,} rows whose sentences no training saw.

| translations of | translations | Pearson | Spearman | Kendall |
| --- | --- | --- | --- | --- |
{agreement}

Much of that is how hard a source is. Between the two translations of one source it knows less: where their
chrF differs ({differing:,} rows) it scores the better one higher in {better:.1%} (always the large one:
{always_large:.1%}); its difference has a Spearman of {gain_spearman:.3f} with the gain in chrF.

| source | translation | score |
| --- | --- | --- |
{examples}

"""


def read_labels(folder: Path) -> Rows:
    return [row for row in pq.read_table(folder / "data").to_pylist() if row["gain"] is not None]


def samples(rows: Rows, model: str) -> Samples:
    return [{"src": row["source"], "mt": row[f"translation_{model}"]} for row in rows]


def write_pairs(rows: Rows, path: Path) -> str:
    """Both models' translations as unbabel-comet reads its training data, scores from 0 to 1."""
    pairs = [
        sample | {"score": row[f"quality_{model}"] / 100}
        for model in MODELS
        for row, sample in zip(rows, samples(rows, model), strict=True)
    ]
    pa.csv.write_csv(pa.Table.from_pylist(pairs), path)
    return str(path)


def match(model: CometModel, pairs: Sequence[Pair], epochs: float) -> None:
    """Teach the encoder to find each sentence's translation among those of its batch."""
    steps = int(epochs * len(pairs) / MATCH_PAIRS)
    optimizer = torch.optim.AdamW(model.encoder.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, MATCH_LEARNING_RATE, steps + 1, pct_start=0.1, cycle_momentum=False
    )
    model.train()
    for step, batch in enumerate(itertools.islice(batches(pairs), steps)):
        texts = [model.encoder.prepare_sample(list(side)) for side in zip(*batch, strict=True)]
        ours, theirs = (functional.normalize(model.get_sentence_embedding(**one)) for one in texts)
        likeness, right = MATCH_SCALE * ours @ theirs.T, torch.arange(len(batch))
        loss = functional.cross_entropy(likeness, right) + functional.cross_entropy(likeness.T, right)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 100 == 0:
            print(f"match: step {step} of {steps}, loss {loss.item() / 2:.3f}", flush=True)


def batches(pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
    """Without end, in another order each time; pairs of a batch are about as long: less padding, and harder
    to tell apart."""
    draw = np.random.default_rng(0)
    lengths = np.array([len(source) + len(translation) for source, translation in pairs])
    while True:
        order = np.argsort(lengths + draw.normal(0, 4, len(pairs)))
        starts = np.arange(0, max(1, len(order) - MATCH_PAIRS + 1), MATCH_PAIRS)
        for start in draw.permutation(starts):
            yield [pairs[place] for place in order[start : start + MATCH_PAIRS]]


def fit(model: CometModel, work: Path, epochs: int) -> dict[str, Any]:
    """unbabel-comet's own training with the callbacks of its comet-train: the best state and its figures."""
    best = ModelCheckpoint(work, "best", "val_spearman", mode="max", enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        gradient_clip_val=1.0,
        val_check_interval=0.5,
        num_sanity_val_steps=0,
        callbacks=[
            EMAWeightAveraging(decay=0.998),
            best,
            EarlyStopping("val_spearman", patience=3, mode="max", verbose=True),
        ],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(model)
    kept = torch.load(best.best_model_path, weights_only=False)
    steps = trainer.num_training_batches
    assert best.best_model_score is not None
    return {
        "state": kept["state_dict"],
        "best": float(best.best_model_score),
        "epochs": kept["global_step"] / steps,
    }


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the folder, but for its card; what the card says of the training."""
    started, out, work = time.monotonic(), arguments.out, arguments.out / WORK
    seed_everything(arguments.seed)
    work.mkdir(parents=True, exist_ok=True)
    text = pq.read_table(arguments.trained / "text" / "train").to_pylist()
    make_encoder(out, (row["source"] for row in text), **ENCODER)
    rows = read_labels(arguments.trained / "labels")
    of = sides([row["group"] for row in rows], 0, Decimal("0.1"), Decimal(0))  # as train.yaml's
    validation = [row for row, side in zip(rows, of, strict=True) if side == VALIDATION]
    training = [row for row, side in zip(rows, of, strict=True) if side != VALIDATION]
    data = {
        "train_data": [write_pairs(training, work / "train.csv")],
        "validation_data": [write_pairs(validation, work / "validation.csv")],
    }
    model = build(ReferencelessRegression, out, **SETTINGS, **data)
    pairs = [(row["source"], row["reference"]) for row in text if row["source_lang"] == "en"]
    match(model, pairs, arguments.match_epochs)
    found = fit(model, work, arguments.epochs)
    final = build(ReferencelessRegression, out, **SETTINGS)  # knows nothing of this machine's data
    final.load_state_dict(found.pop("state"))
    for weights in final.parameters():
        weights.data = weights.data.half()
    save(final, out)
    return found | {
        "parameters": sum(weights.numel() for weights in final.parameters()),
        "minutes": (time.monotonic() - started) / 60,
        "seed": arguments.seed,
        "match_epochs": arguments.match_epochs,
        "match_rows": len(pairs),
        "train_rows": len(training),
        "validation_rows": len(validation),
    }


def scorer(folder: Path) -> Callable[[Samples], np.ndarray]:
    """The folder's model as unbabel-comet loads it: scores x100 of samples."""
    with contextlib.chdir(folder):
        model = load_from_checkpoint(str(CHECKPOINT))

    def score(texts: Samples) -> np.ndarray:
        found = model.predict(texts, batch_size=256, gpus=0, num_workers=0, progress_bar=False)
        return 100 * np.array(found["scores"])

    return score


def measure(rows: Rows, scores: dict[str, np.ndarray]) -> dict[str, Any]:
    """How scores of both models' translations agree with their chrF, over all and in parts."""
    chrf = {model: np.array([row[f"quality_{model}"] for row in rows]) for model in MODELS}
    directions = np.array([f"{row['source_lang']}-{row['target_lang']}" for row in rows])
    parts = {"both, all directions": (MODELS, np.ones(len(rows), bool))}
    parts |= {f"both, {name}": (MODELS, directions == name) for name in sorted(set(directions))}
    parts |= {f"the {model} model": ((model,), np.ones(len(rows), bool)) for model in MODELS}
    agreement = {}
    for name, (models, of) in parts.items():
        ours, theirs = (np.concatenate([side[model][of] for model in models]) for side in (scores, chrf))
        found = [test(ours, theirs).statistic for test in (stats.pearsonr, stats.spearmanr, stats.kendalltau)]
        agreement[name] = (len(ours), *map(float, found))
    gain, ours = (side["large"] - side["small"] for side in (chrf, scores))
    differ = gain != 0
    return {
        "test_rows": len(rows),
        "agreement": agreement,
        "differing": int(differ.sum()),
        "better": float((np.sign(ours) == np.sign(gain))[differ].mean()),
        "always_large": float((gain > 0)[differ].mean()),
        "gain_spearman": float(stats.spearmanr(ours, gain).statistic),
    }


def card(
    trained: dict[str, Any], measured: dict[str, Any], examples: Iterable[tuple[str, str, float]]
) -> str:
    lines = [
        f"| {name} | {count:,} | {pearson:.3f} | {spearman:.3f} | {kendall:.3f} |"
        for name, (count, pearson, spearman, kendall) in measured["agreement"].items()
    ]
    told = [f"| {source} | {translation} | {score:.2f} |" for source, translation, score in examples]
    facts = {**ENCODER, **SETTINGS, **trained, **measured} | {
        "agreement": "\n".join(lines),
        "examples": "\n".join(told),
        "match_pairs": MATCH_PAIRS,
        "match_learning_rate": MATCH_LEARNING_RATE,
    }
    return CARD.format(**facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trained", type=Path, help="with text/train, labels and labels-test")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-models/comet"))
    parser.add_argument("--match-epochs", type=float, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = train(arguments)
    found["sha256"] = hashlib.sha256((arguments.out / CHECKPOINT).read_bytes()).hexdigest()
    score = scorer(arguments.out)
    rows = read_labels(arguments.trained / "labels-test")
    measured = measure(rows, {model: score(samples(rows, model)) for model in MODELS})
    of = score([{"src": source, "mt": translation} for source, translation in EXAMPLES])
    examples = [(*pair, value) for pair, value in zip(EXAMPLES, of, strict=True)]
    (arguments.out / "README.md").write_text(card(found, measured, examples), encoding="utf8")


if __name__ == "__main__":
    main()
