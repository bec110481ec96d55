"""The worker's side of a training: transformers' Trainer in a Ray Train worker, with resume.

It reads token ids and targets from the training folder and knows neither tables nor prompts. Each worker
runs `train_loop`; only the first one writes. Ray Train's own checkpoints and data iterators are not used:
Trainer's checkpoints hold all that a resume needs, and the rows are tokenized already.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset, Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from routelmt_batch.errors import RoutelmtError
from routelmt_batch.failpoints import reach
from routelmt_batch.files.write import write_parquet
from routelmt_batch.learning.training import examples, regressor
from routelmt_batch.learning.training.folder import TrainingFolder
from routelmt_batch.learning.training.regression import spearman
from routelmt_batch.learning.training.report import Prepared, Trained
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.learning.training.split import TEST, TRAIN, VALIDATION
from routelmt_batch.routers.card import Scale
from routelmt_batch.routers.forward import last_token_scores, padded, pooled_scores
from routelmt_batch.store.cache import bring

_LOGS_PER_EPOCH = 20
_NO_RANKING = -1.0  # a constant prediction ranks nothing: worse than any Spearman that is defined
_NAMES = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "eval_loss": "validation_loss",
    "eval_spearman": "validation_spearman",
}


def train_loop(config: Mapping[str, Any]) -> RoutelmtError | None:
    """Train, save and predict. `config` holds `spec` (a dump), `folder`, `threads` and `models`, the driver's
    copies of fetched models.

    An error that the operator must fix is returned, because Ray Train retries after one that is raised."""
    spec = TrainSpec.model_validate(config["spec"])
    folder = TrainingFolder(Path(config["folder"]))
    torch.set_num_threads(config["threads"])
    try:
        bring(config["models"])
        if not folder.trained.exists():
            _train(spec, folder)
        if _is_first():
            _publish(spec, folder)
    except RoutelmtError as error:
        return error
    return None


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def _train(spec: TrainSpec, folder: TrainingFolder) -> None:
    scale = Prepared.read(folder.prepared).scale  # the driver prepares the rows
    rows = {side: _Rows(examples.read(folder, side), scale) for side in (TRAIN, VALIDATION)}
    last = folder.last_checkpoint()
    arguments = _arguments(spec, folder, len(rows[TRAIN]))  # sets the seed, before there is a head
    torch.manual_seed(spec.training.seed)
    tokenizer = regressor.tokenizer_of(spec)
    trainer = _Trainer(
        model=regressor.trainable(spec),
        args=arguments,
        train_dataset=rows[TRAIN],
        eval_dataset=rows[VALIDATION].by_length(),
        data_collator=_Collator(tokenizer.pad_token_id),
        compute_loss_func=_squared_error,
        compute_metrics=_ranking,
        callbacks=_callbacks(spec, folder),
    )
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if _is_first():
        _write_trained(trainer, folder)


def _arguments(spec: TrainSpec, folder: TrainingFolder, rows: int) -> TrainingArguments:
    training, steps = spec.training, examples.steps_per_epoch(spec, rows)
    every = math.ceil(steps / training.evaluations_per_epoch)
    scheduler = "constant_with_warmup" if training.scheduler == "constant" else training.scheduler
    return TrainingArguments(
        output_dir=str(folder.checkpoints),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        lr_scheduler_type=scheduler,
        warmup_steps=math.ceil(training.warmup_fraction * steps * training.epochs),
        weight_decay=training.weight_decay,
        max_grad_norm=training.gradient_norm,
        per_device_train_batch_size=spec.worker_rows,
        per_device_eval_batch_size=spec.worker_rows,
        gradient_accumulation_steps=examples.accumulation(spec),
        bf16=training.autocast == "bfloat16",
        use_cpu=spec.workers.gpus == 0,
        seed=training.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,  # the best and the last
        load_best_model_at_end=True,
        metric_for_best_model="spearman",
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,  # patience goes on where it was
        logging_steps=max(1, steps // _LOGS_PER_EPOCH),
        disable_tqdm=True,
        report_to="none",
        label_names=["labels"],
        remove_unused_columns=False,
        dataloader_pin_memory=spec.workers.gpus > 0,
        ddp_find_unused_parameters=False,
    )


def _callbacks(spec: TrainSpec, folder: TrainingFolder) -> list[TrainerCallback]:
    stop = [EarlyStoppingCallback(spec.training.patience)] if spec.training.patience else []
    return [*stop, _Diary(folder)]


def _squared_error(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted squared errors of a worker's micro-batch, divided by the rows of the whole step.

    `labels` (rows, 2) are targets and weights. Trainer counts the values of the whole step, two for each row.

    The models' own loss divides by the rows of the micro-batch. Trainer expects a division by the rows of
    the step, so gradients would grow with micro-batches and workers."""
    target, weight = labels.unbind(dim=1)
    errors: torch.Tensor = weight * (outputs.logits[:, 0].float() - target) ** 2
    return errors.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch / 2)


def _ranking(prediction: Any) -> dict[str, float]:
    value = spearman(np.asarray(prediction.predictions)[:, 0], np.asarray(prediction.label_ids)[:, 0])
    return {"spearman": _NO_RANKING if math.isnan(value) else value}


def _write_trained(trainer: Trainer, folder: TrainingFolder) -> None:
    state = trainer.state
    trained = Trained(
        checkpoint=Path(state.best_model_checkpoint).name,
        validation_spearman=state.best_metric,
        best_step=state.best_global_step,
        steps=state.global_step,
        steps_planned=state.max_steps,
        epochs_run=round(float(state.epoch), 3),
        stopped_early=state.global_step < state.max_steps,
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
    )
    trained.write(folder.trained, "train.trained")


def _publish(spec: TrainSpec, folder: TrainingFolder) -> None:
    """Write the router's model, read it back, and write its predictions for the test rows, as in a job."""
    checkpoint = Trained.read(folder.trained).checkpoint
    regressor.save(spec, folder.checkpoints / checkpoint, folder.root)
    test, scale = examples.read(folder, TEST), Prepared.read(folder.prepared).scale
    model = regressor.plain(spec, str(folder.root)).eval().to("cuda" if spec.workers.gpus else "cpu")
    score = pooled_scores if spec.base.architecture == "encoder" else last_token_scores
    table = pa.table(
        {
            "direction": test.directions,
            "predicted": scale.mean + scale.std * score(model, test.token_ids),
            "realised": test.targets,
        }
    )
    write_parquet(folder.predictions, table, "train.predictions")


class _Rows(Dataset[dict[str, Any]]):
    """Examples. Their labels (rows, 2) are targets, standardised by the training rows' mean and standard
    deviation, and weights."""

    def __init__(self, side: examples.Examples, scale: Scale) -> None:
        self.token_ids = side.token_ids
        targets = (np.asarray(side.targets) - scale.mean) / scale.std
        self.labels = np.column_stack([targets, side.weights])

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"input_ids": self.token_ids[row], "labels": self.labels[row].tolist()}

    def by_length(self) -> _Rows:
        """The rows, shortest first: less padding, if their order has no meaning."""
        order = sorted(range(len(self)), key=lambda row: len(self.token_ids[row]))
        self.token_ids, self.labels = [self.token_ids[row] for row in order], self.labels[order]
        return self


class _Collator:
    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        tokens, mask = padded([row["input_ids"] for row in rows], self.pad_id)
        labels = torch.tensor([row["labels"] for row in rows], dtype=torch.float32)
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


class _LengthGrouped(Sampler[int]):
    """Batches of similar lengths, in a new order for each epoch. The order is the same in every worker, after
    a resume, and for any micro-batch size. (transformers' own sampler uses the process's generator.)"""

    def __init__(self, lengths: Sequence[int], batch_rows: int, seed: int) -> None:
        self.lengths, self.batch_rows, self.seed, self.epoch = list(lengths), batch_rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_rows, generator=generator))


class _Trainer(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths, args = [len(ids) for ids in self.train_dataset.token_ids], self.args
        step_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return _LengthGrouped(lengths, step_rows, args.seed)


class _Diary(TrainerCallback):  # type: ignore[misc]
    """Logs progress to `log.jsonl`, which the driver follows."""

    def __init__(self, folder: TrainingFolder) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Log the step where training begins. Later steps in earlier lines are repeated."""
        if state.is_world_process_zero:
            self.folder.sweep()
            self._write({"step": state.global_step, "of": state.max_steps})

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **more: Any) -> None:
        values = {name: logs[key] for key, name in _NAMES.items() if key in logs}
        if state.is_world_process_zero and values:
            self._write({"step": state.global_step, "epoch": round(float(state.epoch), 4), **values})

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        reach("train.step")

    def _write(self, line: Mapping[str, Any]) -> None:
        with open(self.folder.log, "a", encoding="utf8") as file:
            file.write(json.dumps(line) + "\n")
