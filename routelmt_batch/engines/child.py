"""An engine's process: it loads a model, takes rows from a pipe and answers them until the pipe closes.

It runs as `python -m routelmt_batch.engines.child FD`. It is a separate process so that a row that kills the
model kills nothing else, and so that the model's threads belong to its main thread. It imports neither Ray
nor anything that its model does not need. process.py is the parent's side.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

import pyarrow as pa

from routelmt_batch import fetched
from routelmt_batch.engines import stacks
from routelmt_batch.engines.lanes import Answer
from routelmt_batch.engines.lifeline import VARIABLE
from routelmt_batch.engines.models import Keyed, Load, Model, RowsFailed
from routelmt_batch.rows import TOO_LONG

if TYPE_CHECKING:
    from routelmt_batch.prompts import Prompter

Batch = tuple[Sequence[int], pa.Table, list[Keyed]]  # keys, rows, and answers that need no model


def main(pipe: Connection) -> None:
    """Load the model that the first message names, then serve it. Messages: see process.EngineProcess."""
    os.environ[VARIABLE] = str(os.getpid())
    stacks.show_on_signal()
    inbox: queue.SimpleQueue[Batch] = queue.SimpleQueue()
    try:
        load, prompter, limit_tokens = _first(pipe)
        # A thread tokenizes rows while the model runs: the tokenizer's Rust code releases Python's lock.
        thread = threading.Thread(target=_take, args=(pipe, prompter, limit_tokens, inbox), daemon=True)
        thread.start()
        with _few_collections():
            if prompter:
                prompter.load()
            model = load()
    except Exception as error:
        traceback.print_exc()
        pipe.send(("failed", f"{type(error).__name__}: {error}"))
        return
    pipe.send(("ready", None))
    serve(pipe, model, inbox)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """While a model loads. What its libraries make stays. Searching it for garbage again and again took a
    sixth of the CPU time of vLLM's start. Afterwards it is not searched any more."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
    gc.freeze()


def _first(pipe: Connection) -> tuple[Load, Prompter | None, int]:
    load, prompter, limit_tokens, models = pipe.recv()
    fetched.add(models)
    return load, prompter, limit_tokens


def serve(pipe: Connection, model: Model, inbox: queue.SimpleQueue[Batch]) -> None:
    """Give the model all rows that have arrived, and send its answers as they come."""
    while True:
        while not (model.busy and inbox.empty()):
            keys, rows, refused = inbox.get()
            if refused:
                pipe.send(("answers", refused))
            if len(keys):
                model.add(keys, rows)
        try:
            answers = model.step()
        except RowsFailed as error:
            pipe.send(("rows failed", error))
            continue
        if answers:
            pipe.send(("answers", answers))


def _take(
    pipe: Connection, prompter: Prompter | None, limit_tokens: int, inbox: queue.SimpleQueue[Batch]
) -> None:
    try:
        while True:
            keys, rows = pipe.recv()
            inbox.put(tokenized(keys, rows, prompter, limit_tokens) if prompter else (keys, rows, []))
    except EOFError:
        pass  # the parent process is gone
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def tokenized(keys: Sequence[int], rows: pa.Table, prompter: Prompter, limit_tokens: int) -> Batch:
    """Add the prompts' token ids as a column `tokens`. Rows with too long prompts are answered instead, and
    far too long ones are not even tokenized."""
    texts = rows["source"].to_pylist()
    far = [
        index
        for index, text in enumerate(texts)
        if len(text) > limit_tokens and prompter.fewest_tokens(text) > limit_tokens
    ]
    if far:
        refused = [(keys[index], Answer(TOO_LONG)) for index in far]
        kept = sorted(set(range(len(texts))) - set(far))
        keys, rows, others = tokenized(
            [keys[i] for i in kept], rows.take(pa.array(kept, pa.int64())), prompter, limit_tokens
        )
        return keys, rows, refused + others
    columns = (rows[name].to_pylist() for name in ("source", "source_lang", "target_lang"))
    tokens = prompter.token_ids(*columns)
    refused = [
        (key, Answer(TOO_LONG, "", len(ids)))
        for key, ids in zip(keys, tokens, strict=True)
        if len(ids) > limit_tokens
    ]
    rows = rows.append_column("tokens", pa.array(tokens, pa.list_(pa.int32())))
    if refused:
        kept = [index for index, ids in enumerate(tokens) if len(ids) <= limit_tokens]
        keys, rows = [keys[index] for index in kept], rows.take(pa.array(kept, pa.int64()))
    return keys, rows, refused


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    with contextlib.suppress(OSError):  # not every container allows it
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # see session._yielding
    main(Connection(int(sys.argv[1])))
    os._exit(0)
