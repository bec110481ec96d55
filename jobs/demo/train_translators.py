"""Train the demo's tokenizer and its small and large translators on the CPU.

    python jobs/demo/train_translators.py runs/demo-models/text/train --out runs/demo-models

Writes `small` and `large` below --out: Qwen3 checkpoints in bfloat16 that transformers and vLLM load
like any other. Stopped, the same command goes on from its last checkpoint (every 200 steps); what was
begun with another text, seed or recipe is refused.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from routelmt_batch.prompts import Prompter
from routelmt_batch.tokens import load_tokenizer

VOCABULARY = 8192
PAD, EOS = 0, 1
BATCH_TOKENS = 4096  # padded
LONGEST_TOKENS = 200
WARM_UP_STEPS = 200
LAST_LEARNING_RATE = 0.02  # of the highest
LABEL_SMOOTHING = 0.1
WEIGHT_DECAY = 0.05
EMBEDDING_LEARNING_RATE = 2e-3
CHECKPOINT_STEPS = 200


@dataclass(frozen=True)
class Recipe:
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_size: int
    epochs: float
    learning_rate: float  # of the matrices, by Muon; the rest is AdamW's


RECIPES = {
    "small": Recipe(3, 128, 384, 4, 2, 32, epochs=2, learning_rate=4e-3),
    "large": Recipe(6, 288, 864, 6, 3, 48, epochs=4, learning_rate=3e-3),
}


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of what should follow it."""

    prompt: list[int]
    target: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.target)


def read_rows(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(folder).to_pylist()
    return rows


def fingerprint(rows: list[dict[str, str]]) -> str:
    """Of the text that is learnt from: every column, in order."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def check_same(what: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with what was made from something else."""
    differing = [f"{key}: was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if differing:
        raise SystemExit(
            f"{what}: made from something else: {'; '.join(differing)}. Change it back, or give another --out"
        )


def train_tokenizer(rows: list[dict[str, str]], folder: Path) -> None:
    """Byte-level BPE on the training text alone."""
    made, told = {"text": fingerprint(rows), "vocabulary": VOCABULARY}, folder / "training.json"
    if told.exists():
        check_same(folder, json.loads(told.read_text()), made)
        return
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # The prompts' own words weigh little here; each row gives its source once as the source of a
    # prompt and once, the other way round, as a target.
    tokenizer.train_from_iterator((f"\n{row['source_lang']}: {row['source']}" for row in rows), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder
    )
    told.write_text(json.dumps(made, indent=1) + "\n")


def examples(rows: list[dict[str, str]], tokenizer_folder: Path) -> list[Example]:
    prompter = Prompter(str(tokenizer_folder))
    prompts = prompter.token_ids(
        [row["source"] for row in rows],
        [row["source_lang"] for row in rows],
        [row["target_lang"] for row in rows],
    )
    targets = load_tokenizer(str(tokenizer_folder)).ids([f" {row['reference']}" for row in rows])
    found = [Example(prompt, [*target, EOS]) for prompt, target in zip(prompts, targets, strict=True)]
    return [example for example in found if len(example) <= LONGEST_TOKENS]


def batches(found: list[Example], seed: int) -> list[list[Example]]:
    """Batches of like lengths, at most BATCH_TOKENS padded tokens each, in random order."""
    order = random.Random(seed)
    shuffled = order.sample(found, len(found))
    result: list[list[Example]] = []
    batch: list[Example] = []
    for example in sorted(shuffled, key=len):
        if batch and (len(batch) + 1) * len(example) > BATCH_TOKENS:
            result.append(batch)
            batch = []
        batch.append(example)
    result.append(batch)
    order.shuffle(result)
    return result


def loss_of(model: Qwen3ForCausalLM, batch: list[Example]) -> torch.Tensor:
    """Mean cross-entropy over target tokens. Only their positions go through the output layer.

    Padding is on the right, where a causal model's targets never look: no mask is needed.
    """
    longest = max(map(len, batch))
    tokens = torch.full((len(batch), longest), PAD)
    wanted = torch.zeros((len(batch), longest), dtype=torch.bool)
    for line, example in enumerate(batch):
        tokens[line, : len(example)] = torch.tensor(example.prompt + example.target)
        wanted[line, len(example.prompt) : len(example)] = True
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[wanted[:, 1:]])
    return cross_entropy(logits.float(), tokens[:, 1:][wanted[:, 1:]], label_smoothing=LABEL_SMOOTHING)


def learning_rate(step: int, steps: int) -> float:
    """Share of the highest rate: linear warm-up, then linear decay."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    left = (steps - step) / max(steps - WARM_UP_STEPS, 1)
    return LAST_LEARNING_RATE + (1 - LAST_LEARNING_RATE) * left


def build(recipe: Recipe) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=recipe.hidden,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.key_value_heads,
            head_dim=recipe.head_size,
            max_position_embeddings=512,
            rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=None,
            eos_token_id=EOS,
        )
    )


def optimizers(model: Qwen3ForCausalLM, rate: float) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers with their highest rates: Muon (Jordan et al. 2024) for the layers' matrices, AdamW for
    embeddings and norms. After 450 steps of the small model the loss was 4.12 against AdamW's 4.48."""
    embedding = model.get_input_embeddings().weight
    matrices = [value for value in model.parameters() if value.ndim == 2 and value is not embedding]
    others = [value for value in model.parameters() if value.ndim != 2 or value is embedding]
    return [
        (torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"), rate),
        (
            torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True),
            EMBEDDING_LEARNING_RATE,
        ),
    ]


def schedule(found: list[Example], epochs: float, seed: int) -> list[list[Example]]:
    plan: list[list[Example]] = []
    for epoch in range(math.ceil(epochs)):
        one = batches(found, seed + epoch)
        plan += one[: round(len(one) * min(1.0, epochs - epoch))]
    return plan


def train(
    name: str, found: list[Example], out: Path, made: dict[str, Any], plan: list[list[Example]]
) -> None:
    """Train by a plan of batches. `made` says from what; a checkpoint made from something else is refused."""
    recipe, state_file = RECIPES[name], out / f"{name}.checkpoint.pt"
    torch.manual_seed(made["seed"])
    model = build(recipe)
    stepping = optimizers(model, recipe.learning_rate)
    first, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file)
        check_same(state_file, state["made"], made)
        model.load_state_dict(state["model"])
        for (optimizer, _), saved in zip(stepping, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    size = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{name}: {size:,} parameters, {len(found):,} examples, {len(plan):,} steps from {first}", flush=True
    )
    started, mean = time.time() - seconds, math.nan
    for step in range(first, len(plan)):
        loss = take_step(model, stepping, plan[step], learning_rate(step, len(plan)))
        mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
        if (step + 1) % 50 == 0:
            print(f"{name}: step {step + 1} loss {mean:.3f} {time.time() - started:.0f} s", flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0:
            state = {
                "made": made,
                "model": model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer, _ in stepping],
                "step": step + 1,
                "seconds": time.time() - started,
            }
            temporary = state_file.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(state_file)
    facts = {"parameters": size, "examples": len(found), "steps": len(plan), "seconds": time.time() - started}
    publish(model, out, name, made | facts)
    state_file.unlink(missing_ok=True)


def take_step(
    model: Qwen3ForCausalLM,
    stepping: list[tuple[torch.optim.Optimizer, float]],
    batch: list[Example],
    share: float,
) -> float:
    """One step at a share of the highest learning rates; its loss."""
    loss = loss_of(model, batch)
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, highest in stepping:
        for group in optimizer.param_groups:
            group["lr"] = highest * share
        optimizer.step()
    return float(loss.detach())


def publish(model: Qwen3ForCausalLM, out: Path, name: str, told: dict[str, Any]) -> None:
    """Write the model and its tokenizer; `training.json` comes last, and says that all is there."""
    model.to(torch.bfloat16).save_pretrained(out / name)
    PreTrainedTokenizerFast.from_pretrained(out / "tokenizer").save_pretrained(out / name)
    (out / name / "training.json").write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path, help="folder of the training text, as split_text.py writes it")
    parser.add_argument("--out", type=Path, default=Path("runs/demo-models"))
    parser.add_argument("--model", choices=RECIPES, action="append", help="only this one; default: both")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-steps", type=int, help="stop early: for a trial")
    arguments = parser.parse_args()
    rows = read_rows(arguments.text)
    train_tokenizer(rows, arguments.out / "tokenizer")
    found = examples(rows, arguments.out / "tokenizer")
    given = {"text": fingerprint(rows), "seed": arguments.seed, "most_steps": arguments.most_steps}
    for name in arguments.model or RECIPES:
        made, told = given | asdict(RECIPES[name]), arguments.out / name / "training.json"
        if told.exists():
            check_same(told.parent, json.loads(told.read_text()), made)
            print(f"{name}: there already", flush=True)
        else:
            plan = schedule(found, RECIPES[name].epochs, arguments.seed)[: arguments.most_steps]
            train(name, found, arguments.out, made, plan)


if __name__ == "__main__":
    main()
