"""The Ray actor around an engine's process: batches of requests in, receipts of written parts out.

It loads nothing heavy: the model is in a separate process (child.py), which the actor starts, and replaces
if it dies.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from routelmt_batch.engines import stacks
from routelmt_batch.engines.child import tokenized
from routelmt_batch.engines.gathering import Gathering, PartLimits
from routelmt_batch.engines.halving import Failure, Halving
from routelmt_batch.engines.lanes import Answer, Receipt, as_results
from routelmt_batch.engines.models import Keyed, RowsFailed
from routelmt_batch.engines.process import EngineBroken, EngineDied, EngineProcess, Recipe
from routelmt_batch.engines.roll import RESTARTS, Pulse, enter
from routelmt_batch.errors import RoutelmtError
from routelmt_batch.rows import EMPTY_OUTPUT, ENGINE_ERROR, ENGINE_KILLED
from routelmt_batch.store.cache import bring

BATCH = "batch"  # a column of pickled REQUESTS tables
RECEIPT = "receipt"
_LANGUAGES = {"source_lang": "en", "target_lang": "de"}


@dataclass(frozen=True)
class Serving:
    """The parts of a lane that an actor needs."""

    lane: str
    recipe: Recipe
    write: Callable[[pa.Table], Any]
    limits: PartLimits
    retries: int


class EngineActor:
    """A callable for ray.data.Dataset.map_batches. Many calls run at once, each in a thread: while some wait
    for their part or write it, the rows of others keep the engine busy.

    Raises:
        EngineBroken: the engine does not start, its models cannot be fetched to this node, or this actor died
            too often.
    """

    def __init__(self, serving: Serving, roll: Any | None) -> None:
        self._beat = 0
        self._engine: _Engine | None = None
        self._gathering = Gathering(serving.write, serving.limits)
        stacks.show_on_signal()
        if roll is not None:
            enter(roll, self._pulse)
        self._lane = serving.lane
        self._name = uuid.uuid4().hex
        recipe = serving.recipe
        try:
            bring(recipe.models)
        except RoutelmtError as error:
            raise EngineBroken(str(error)) from None
        # Another environment's transformers may not read this model's tokenizer: rows get their tokens here.
        self._prompter = recipe.prompter if recipe.python else None
        if self._prompter:
            self._prompter.load()  # now: later, several threads would import transformers at once
        self._limit_tokens = recipe.limit_tokens
        engine = self._engine = _Engine(replace(recipe, prompter=None) if self._prompter else recipe)
        self._halving: Halving[pa.Table, Answer] = Halving(
            engine,
            recipe.load.room,
            lambda rows, indices: rows.take(list(indices)),
            _harmless,
            _given_up,
            lambda answer: answer.error in (ENGINE_ERROR, EMPTY_OUTPUT),
            serving.retries,
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        receipts = [self._serve(pickle.loads(batch)) for batch in block[BATCH].to_pylist()]
        return pa.table({RECEIPT: pa.array([pickle.dumps(receipt) for receipt in receipts], pa.binary())})

    def _serve(self, requests: pa.Table) -> Receipt:
        assert self._engine
        part, calls = self._gathering.run(lambda: self._results(requests))
        return Receipt(self._lane, part, self._name, self._engine.started_at, self._engine.ready_at, calls)

    def _pulse(self) -> Pulse:
        """The beat rises unless calls wait for something that has no deadline of its own, such as a disk."""
        busy = self._engine is None or self._engine.busy
        if busy or not self._gathering.calls:
            self._beat += 1
        return Pulse(self._beat + self._gathering.written, busy)

    def _results(self, requests: pa.Table) -> pa.Table:
        wanted = pc.indices_nonzero(pc.equal(requests["skip"], ""))
        indices: Sequence[int] = wanted.to_pylist()
        refused: list[Keyed] = []
        rows = requests.take(wanted)
        if self._prompter:
            indices, rows, refused = tokenized(indices, rows, self._prompter, self._limit_tokens)
        served = self._halving.run(rows, range(len(indices)))
        return as_results(requests, {indices[at]: answer for at, answer in served.items()} | dict(refused))


class _Engine(EngineProcess):
    """An engine whose start is retried if its process dies, for example because memory is not yet free."""

    def start(self) -> None:
        for tries_left in reversed(range(RESTARTS + 1)):
            try:
                return super().start()
            except EngineDied as error:
                if not tries_left:
                    raise EngineBroken(
                        f"{error} at each of {RESTARTS + 1} starts: it may lack memory or, if it was not "
                        "ready, need a longer run.start_timeout"
                    ) from None
        return None


def _given_up(error: Failure) -> Answer:
    # Only the error's name: its message may quote the row.
    return Answer(error=error.name if isinstance(error, RowsFailed) else ENGINE_KILLED)


def _harmless(rows: pa.Table) -> pa.Table:
    """A copy of the first row in which every text is one character."""
    row = rows.slice(0, 1)
    for index, column in enumerate(row.schema):
        value = row[column.name]
        if column.name in _LANGUAGES:
            value = pa.array([_LANGUAGES[column.name]])
        elif pa.types.is_string(column.type) and column.name not in ("shard", "skip"):
            value = pa.array(["."])
        elif pa.types.is_list(column.type) and pa.types.is_string(column.type.value_type):
            value = pa.array([["."]])  # references
        elif pa.types.is_list(column.type):  # token ids
            value = pc.list_slice(value, 0, 1)
        row = row.set_column(index, column.name, value)
    return row
