"""The engine actor: ray.data.llm's vLLM stage, with a row's retries beside the engine.

A row that fails, or comes back empty, is tried again at once in the same engine: a second pass
would cost an engine start. Imported only where an engine is built.
"""

from __future__ import annotations

import os
from typing import Any

from ray.llm._internal.batch.stages.vllm_engine_stage import vLLMEngineStageUDF

from routelmt_batch.engines.lifeline import VARIABLE
from routelmt_batch.engines.vllm import ERROR
from routelmt_batch.rows import EMPTY_OUTPUT, ENGINE_ERROR


class EngineActor(vLLMEngineStageUDF):  # type: ignore[misc]  # Ray ships no types for it
    def __init__(self, *args: Any, retries: int, **kwargs: Any) -> None:
        os.environ[VARIABLE] = str(os.getpid())
        self.retries = retries
        super().__init__(*args, **kwargs)

    async def _generate_with_error_handling(self, row: dict[str, Any], batch_uuid: Any) -> dict[str, Any]:
        for _ in range(self.retries + 1):
            # The stage pops what it uses from the row: give each try its own.
            output: dict[str, Any] = await super()._generate_with_error_handling(dict(row), batch_uuid)
            if output[ERROR]:
                # Ray puts the start of the prompt into its message; corpus text stays out of ours.
                output[ERROR] = ENGINE_ERROR
            elif self.task_type == "generate" and not output["generated_text"].strip():
                output[ERROR] = EMPTY_OUTPUT
            else:
                break
        return output
