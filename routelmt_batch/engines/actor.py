"""The actor that holds a vLLM engine: Ray's own vLLM stage, with a row's retries beside the engine.

A row that fails, or comes back empty, is tried again at once in the same engine: a second pass
would cost an engine start. vLLM runs its engine in a child process of the actor, on CPU and GPU alike.
Ray's stage ends the actor when that process dies, and the next actor would die of the same row; ours
starts another engine and looks for the row (see halving). Only if that fails is the actor replaced.
Imported only where an engine is built.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF
from vllm.v1.engine.exceptions import EngineDeadError

from routelmt_batch.engines.halving import EngineDied, Halving
from routelmt_batch.engines.lifeline import VARIABLE
from routelmt_batch.engines.session import RESTARTS
from routelmt_batch.engines.vllm import ERROR
from routelmt_batch.rows import EMPTY_OUTPUT, ENGINE_ERROR, ENGINE_KILLED

logger = logging.getLogger(__name__)
_PAUSE_S = 5.0

Row = dict[str, Any]


class EngineActor(vLLMEngineStageUDF):  # type: ignore[misc]  # Ray ships no types for it
    def __init__(self, *args: Any, retries: int, **kwargs: Any) -> None:
        os.environ[VARIABLE] = str(os.getpid())
        self.retries = retries
        self._arguments = args, kwargs
        super().__init__(*args, **kwargs)
        self._halving = Halving(self._ask, self._restart, self.max_pending_requests, _harmless)

    async def _generate_with_error_handling(self, row: Row, batch_uuid: Any) -> Row:
        output: Row = {}
        for _ in range(self.retries + 1):
            output = await self._halving.send(row) or {ERROR: ENGINE_KILLED}
            if output[ERROR] in ("", ENGINE_KILLED):
                break
        return {**output, self.IDX_IN_BATCH_COLUMN: row[self.IDX_IN_BATCH_COLUMN]}

    async def _ask(self, row: Row) -> Row:
        """What the engine answers; an error is its slug alone, for corpus text stays out of messages."""
        try:
            # The stage pops what it uses from the row: give each try its own.
            _, output, seconds = await self.llm.generate_async(dict(row))
        except Exception as error:
            if isinstance(error, EngineDeadError) or self.llm.engine.errored:
                raise EngineDied from None
            logger.warning("a row failed: %s", type(error).__name__)
            return {ERROR: ENGINE_ERROR}
        if self.task_type == "generate" and not output["generated_text"].strip():
            return {ERROR: EMPTY_OUTPUT}
        return {**output, "time_taken_llm": seconds, ERROR: ""}

    def _restart(self) -> None:
        """Replace the dead engine. What it held may take a moment to be free: that is tried again."""
        args, kwargs = self._arguments
        for left in reversed(range(RESTARTS + 1)):
            try:
                self.llm.shutdown()
                super().__init__(*args, **kwargs)
                return
            except Exception:
                logger.exception("the engine did not start again")
                if not left:
                    os._exit(1)  # as Ray's stage does: its rows go to another actor
                time.sleep(_PAUSE_S)


def _harmless(row: Row) -> Row:
    """The first token of a row's prompt, which its template has in all of them."""
    found = {**row, "tokenized_prompt": row["tokenized_prompt"][:1]}
    if "sampling_params" in row:
        found["sampling_params"] = {**row["sampling_params"], "max_tokens": 1}
    return found
