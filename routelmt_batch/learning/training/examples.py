"""Training examples on disk: each row's prompt as token ids, its target, its weight and its side.

They are tokenized once, and read by every worker, epoch and resume. It knows no model but its tokenizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from routelmt_batch.errors import InputError
from routelmt_batch.files.write import write_parquet
from routelmt_batch.learning.training.folder import TrainingFolder
from routelmt_batch.learning.training.report import Prepared
from routelmt_batch.learning.training.spec import TrainSpec
from routelmt_batch.learning.training.split import SIDES, TEST, TRAIN
from routelmt_batch.progress import Bars
from routelmt_batch.prompts import Prompter, cut_off
from routelmt_batch.routers.card import Scale
from routelmt_batch.stats.measures import is_constant

FEWEST_ROWS = 20
_FEWEST_OF_A_SIDE = 2  # a correlation needs two
_CHUNK_ROWS = 2048

SCHEMA = pa.schema(
    {
        "token_ids": pa.list_(pa.int32()),
        "target": pa.float64(),
        "weight": pa.float64(),
        "direction": pa.string(),
    }
)


@dataclass(frozen=True)
class Examples:
    """The examples of one side, row by row: token ids, targets on the metric's own scale, and weights in the
    loss, which are 1 on average over the training rows."""

    token_ids: list[list[int]]
    targets: Any  # float64 array
    weights: Any  # float64 array
    directions: list[str]


def check_sides(rows: pa.Table, spec: TrainSpec) -> None:
    """Raises InputError if the rows are too few, all alike, or all on one side."""
    if rows.num_rows < FEWEST_ROWS:
        raise InputError(
            f"{rows.num_rows} usable label rows: too few to train on (at least {FEWEST_ROWS}); label more"
        )
    for side in SIDES:
        targets = _targets(rows, side)
        if len(targets) < _FEWEST_OF_A_SIDE:
            raise InputError(
                f"the {side} side has {len(targets)} rows of {rows.num_rows}: give more labels, more "
                f"distinct values of {spec.split.by!r}, larger fractions in split, or another split.seed"
            )
        if side != TEST and is_constant(targets):
            raise InputError(
                f"every {spec.target} on the {side} side is {targets[0]:g}: there is nothing to learn. Are "
                "the two models the same, or the metric's references missing?"
            )


def _targets(rows: pa.Table, side: str) -> Any:
    return rows["target"].to_numpy()[np.array(rows["side"].to_pylist()) == side]


def prepare(spec: TrainSpec, rows: pa.Table, folder: TrainingFolder, bars: Bars) -> Prepared:
    """Tokenize the rows into the folder, unless an earlier run did."""
    if folder.manifest.exists():
        prepared = Prepared.read(folder.prepared)
    else:
        prepared = _prepare(spec, rows, folder, bars)
        prepared.write(folder.prepared, "train.prepared")
    rows_of, limit = f"of {rows.num_rows:,}", f"training.max_length_tokens {spec.training.max_length_tokens}"
    if lost := prepared.left_out_too_long:
        bars.warn(f"{lost:,} {rows_of} label rows left out: their prompts are longer than {limit}")
    if cut := prepared.cut_off:
        bars.warn(f"{cut:,} {rows_of} prompts cut off at {limit}")
    return prepared


def _prepare(spec: TrainSpec, rows: pa.Table, folder: TrainingFolder, bars: Bars) -> Prepared:
    ids, keep, cut = _tokenize(spec, rows, bars)
    kept = rows.filter(pa.array(keep, pa.bool_()))
    check_sides(kept, spec)
    directions = pc.binary_join_element_wise(kept["source_lang"], kept["target_lang"], "-")
    of_side = np.array(kept["side"].to_pylist())
    table = pa.table([ids, kept["target"], _weights(spec, kept, of_side == TRAIN), directions], schema=SCHEMA)
    for side in SIDES:
        write_parquet(folder.rows(side), table.filter(pa.array(of_side == side)), "train.rows")
    train = _targets(kept, TRAIN)
    return Prepared(
        rows={side: int((of_side == side).sum()) for side in SIDES},
        left_out_too_long=keep.count(False),
        cut_off=cut,
        directions=sorted(set(directions.filter(pa.array(of_side == TRAIN)).to_pylist())),
        scale=Scale(mean=float(train.mean()), std=float(train.std())),
    )


def _weights(spec: TrainSpec, rows: pa.Table, train: Any) -> Any:
    """The rows' weights in the loss, (rows,): their references, divided by the training rows' average.

    The mean gain of m references has 1 / m of the noise of one. Weighted by m, it counts like m rows with one
    reference each. The division keeps the size of the loss, and with it the meaning of the learning rate.
    """
    references = rows["references"].to_numpy() if spec.training.weigh_references else np.ones(rows.num_rows)
    return references / references[train].mean()


def _tokenize(spec: TrainSpec, rows: pa.Table, bars: Bars) -> tuple[pa.Array, list[bool], int]:
    """Token ids of the kept rows; for each row whether it is kept; the number of prompts cut off.

    A decoder's head reads the prompt's last token, so a decoder cannot use a prompt that is cut off: a job
    skips such a row, and training leaves it out. An encoder reads the tokens that fit.
    """
    prompter = Prompter(spec.base.source, spec.prompt.template)
    limit, encoder = spec.training.max_length_tokens, spec.base.architecture == "encoder"
    kept: list[list[int]] = []
    keep, cut = [], 0
    with bars.rows("tokenize", rows.num_rows) as advance:
        for batch in rows.select(["source", "source_lang", "target_lang"]).to_batches(_CHUNK_ROWS):
            for ids in prompter.token_ids(*(column.to_pylist() for column in batch.columns)):
                keep.append(encoder or len(ids) <= limit)
                if encoder and len(ids) > limit:
                    ids, cut = cut_off(ids, limit), cut + 1
                if keep[-1]:
                    kept.append(ids)
            advance(batch.num_rows)
    return pa.array(kept, SCHEMA.field("token_ids").type), keep, cut


def read(folder: TrainingFolder, side: str) -> Examples:
    table = pq.read_table(folder.rows(side), partitioning=None)
    return Examples(
        table["token_ids"].to_pylist(),
        table["target"].to_numpy(),
        table["weight"].to_numpy(),
        table["direction"].to_pylist(),
    )


def steps_per_epoch(spec: TrainSpec, rows: int) -> int:
    """Optimizer steps of one epoch. Workers take batches in turn; a short last batch counts."""
    batches = math.ceil(math.ceil(rows / spec.worker_rows) / spec.workers.count)
    return math.ceil(batches / accumulation(spec))


def accumulation(spec: TrainSpec) -> int:
    """Forward passes of one worker for one optimizer step."""
    return spec.training.batch_rows // (spec.worker_rows * spec.workers.count)
