"""Put the models that `make demo-models` trained into jobs/demo/models, each with its card.

    python jobs/demo/publish_models.py runs/demo-models --to jobs/demo/models

Figures come from the test labels (sentences that no training saw) and from `training.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sacrebleu.metrics import BLEU, CHRF

CARD = """---
license: apache-2.0
language: [en, de, zh]
pipeline_tag: translation
---
# routelmt_batch demo: {name} translator

A demonstration model of [routelmt_batch](../../../../README.md): it makes many mistakes. {parameters:,}
parameters: Qwen3 architecture, {layers} layers x {hidden} (feed-forward {feed_forward}, {heads} heads,
{key_value_heads} key-value heads of size {head_size}). Prompt: LMT's, no chat template; ends with `<eos>`;
useful to about 200 tokens; everyday sentences, en-de, de-en, en-zh and zh-en.

## Training

By `jobs/demo/train_translators.py` (seed {seed}): {examples:,} examples from the text below, four directions
together, {epochs:g} epochs = {steps:,} steps. Muon for the layers' matrices (learning rate
{learning_rate:g}), AdamW for embeddings and norms (2e-3), weight decay 0.05, 200 steps of warm-up, linear
decay to 2%, label
smoothing 0.1, loss on the target only, bf16 autocast, batches of 4,096 padded tokens, gradient norm 1.
Byte-level BPE of 8,192 trained on the same text, shared by all demo models. Saved in bfloat16.

## Held-out figures

On {rows:,} rows whose sentences no training saw (greedy, vLLM; corpus BLEU and chrF by sacrebleu, and the
mean of sentence chrF that gains are made of):

| direction | rows | BLEU | chrF | mean sentence chrF |
| --- | --- | --- | --- | --- |
{figures}

"""

LICENCE = """## Data and licence

Trained on Tatoeba sentence pairs (tatoeba.org), Creative Commons Attribution 2.0 France (CC-BY 2.0 FR),
by Tatoeba's contributors. The text is not part of this project. The weights are released under
Apache-2.0 with that attribution.
"""


def figures(rows: list[dict[str, Any]], name: str) -> str:
    lines = []
    for direction in sorted({(row["source_lang"], row["target_lang"]) for row in rows}):
        some = [row for row in rows if (row["source_lang"], row["target_lang"]) == direction]
        ours = [row[f"translation_{name}"] for row in some]
        references = [[row["reference"] for row in some]]
        bleu = BLEU(tokenize="zh" if direction[1] == "zh" else "13a").corpus_score(ours, references).score
        chrf = CHRF().corpus_score(ours, references).score
        mean = sum(row[f"quality_{name}"] for row in some) / len(some)
        lines.append(f"| {'-'.join(direction)} | {len(some):,} | {bleu:.1f} | {chrf:.1f} | {mean:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trained", type=Path)
    parser.add_argument("--to", type=Path, default=Path("jobs/demo/models"))
    arguments = parser.parse_args()
    table = pq.read_table(arguments.trained / "labels-test" / "data")
    rows = [row for row in table.to_pylist() if row["gain"] is not None]
    for name in ("small", "large"):
        source, target = arguments.trained / name, arguments.to / name
        facts = json.loads((source / "training.json").read_text(encoding="utf8"))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("training.json"))
        card = CARD.format(name=name, rows=len(rows), figures=figures(rows, name), **facts) + LICENCE
        (target / "README.md").write_text(card, encoding="utf8")
    work = shutil.ignore_patterns("_train", "_calibrate")
    for name in ("router", "comet"):
        shutil.rmtree(arguments.to / name, ignore_errors=True)
        shutil.copytree(arguments.trained / name, arguments.to / name, ignore=work)
        with open(arguments.to / name / "README.md", "a", encoding="utf8") as card:
            card.write("\n" + LICENCE)


if __name__ == "__main__":
    main()
