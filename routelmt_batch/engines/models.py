"""The models of engines' processes: vLLM, which translates, or a scorer. Both take rows and give answers.

This module is imported in the quality environment, too: a model's libraries are imported when it is loaded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from routelmt_batch.engines.lanes import Answer, Mask, Scorer
from routelmt_batch.fetched import commit, local
from routelmt_batch.rows import EMPTY_OUTPUT, ENGINE_ERROR

logger = logging.getLogger(__name__)
Keyed = tuple[int, Answer]
_SCORED_ROWS = 1024  # the most rows of one call of a scorer


class RowsFailed(Exception):
    """A model failed on the rows of `keys` together, but can go on.

    `name` is the error's class, and `words` its message, which may quote a row.
    """

    def __init__(self, keys: Sequence[int], name: str, words: str = "") -> None:
        super().__init__(keys, name, words)
        self.keys, self.name, self.words = keys, name, words


class Model(Protocol):
    """A loaded model. `add` takes rows and their keys: a table of REQUESTS, with a column `tokens` if the
    lane has a prompter. `step` works on them and returns the answers that are ready, or raises RowsFailed."""

    def add(self, keys: Sequence[int], rows: pa.Table) -> None: ...

    def step(self) -> list[Keyed]: ...

    @property
    def busy(self) -> bool:
        """Whether rows wait for an answer."""
        ...


class Load(Protocol):
    """Loads a model in the process that runs it. It is pickled into that process."""

    @property
    def room(self) -> int:
        """The most rows that the model is given at a time: enough to keep it busy."""
        ...

    def __call__(self) -> Model: ...


@dataclass(frozen=True)
class Generation:
    """vLLM, decoding greedily.

    Requests are added to LLMEngine while it steps, so that it never runs dry between batches (docs.vllm.ai,
    LLMEngine). It takes and returns token ids; the texts of a step are decoded together.
    """

    engine: dict[str, Any]  # vllm.EngineArgs
    max_output_tokens: int
    end_tokens: tuple[int, ...]
    sequences: int

    @property
    def room(self) -> int:
        return 2 * self.sequences

    def __call__(self) -> Generator:
        return Generator(self)


class Generator:
    """vLLM as a Model."""

    def __init__(self, spec: Generation) -> None:
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        self._invalid = VLLMClientError
        model = spec.engine["model"]
        arguments = spec.engine | {"model": local(model), "revision": commit(model)}
        if "tokenizer" in arguments:  # else vLLM would look for the model's commit in its repository
            arguments = {"tokenizer_revision": "main"} | arguments
        self._engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._tokenizer = self._engine.get_tokenizer()
        end = self._tokenizer.eos_token_id
        self._end_tokens = {*spec.end_tokens, *([end] if isinstance(end, int) else [])}
        self._params = SamplingParams(
            temperature=0.0,
            max_tokens=spec.max_output_tokens,
            stop_token_ids=sorted(self._end_tokens),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # a deep copy for each row would take a twelfth of a small model's time
        )
        self._prompt_tokens: dict[int, int] = {}
        self._refused: list[Keyed] = []

    @property
    def busy(self) -> bool:
        return bool(self._prompt_tokens or self._refused)

    def add(self, keys: Sequence[int], rows: pa.Table) -> None:
        for key, tokens in zip(keys, rows["tokens"].to_pylist(), strict=True):
            try:
                self._engine.add_request(str(key), {"prompt_token_ids": tokens}, self._params)
            except (ValueError, self._invalid) as error:  # an invalid prompt; the message may quote it
                logger.warning("vLLM refused a row: %s", type(error).__name__)
                self._refused.append((key, Answer(error=ENGINE_ERROR, prompt_tokens=len(tokens))))
            else:
                self._prompt_tokens[key] = len(tokens)

    def step(self) -> list[Keyed]:
        refused, self._refused = self._refused, []
        if not self._prompt_tokens:
            return refused
        done = [output for output in self._engine.step() if output.finished]
        ids = [list(output.outputs[0].token_ids) for output in done]
        ended = [bool(tokens) and tokens[-1] in self._end_tokens for tokens in ids]
        bodies = [tokens[:-1] if end else tokens for tokens, end in zip(ids, ended, strict=True)]
        texts = self._tokenizer.batch_decode(bodies, skip_special_tokens=True) if bodies else []
        answers = []
        for output, tokens, text, end in zip(done, ids, texts, ended, strict=True):
            key = int(output.request_id)
            prompt_tokens = self._prompt_tokens.pop(key)
            if text.strip():
                answer = Answer(
                    prompt_tokens=prompt_tokens, text=text, output_tokens=len(tokens), truncated=not end
                )
            else:
                answer = Answer(error=EMPTY_OUTPUT, prompt_tokens=prompt_tokens)
            answers.append((key, answer))
        return refused + answers


@runtime_checkable
class Loading(Protocol):
    """A scorer with a model that can be loaded before its first row."""

    def load(self) -> object: ...


@dataclass(frozen=True)
class Scoring:
    """A scorer. Each call takes all rows that wait, up to `_SCORED_ROWS`."""

    scorer: Scorer
    fills: str = "score"
    cuts: Callable[[pa.Table], Mask] | None = None

    @property
    def room(self) -> int:
        return 2 * _SCORED_ROWS

    def __call__(self) -> ScorerModel:
        return ScorerModel(self)


class ScorerModel:
    """A scorer as a Model."""

    def __init__(self, spec: Scoring) -> None:
        self._spec = spec
        self._waiting: deque[tuple[Sequence[int], pa.Table]] = deque()
        if isinstance(spec.scorer, Loading):
            spec.scorer.load()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, keys: Sequence[int], rows: pa.Table) -> None:
        for start in range(0, len(keys), _SCORED_ROWS):
            at = slice(start, start + _SCORED_ROWS)
            self._waiting.append((keys[at], rows.slice(start, _SCORED_ROWS)))

    def step(self) -> list[Keyed]:
        keys: list[int] = []
        tables: list[pa.Table] = []
        while self._waiting and len(keys) + len(self._waiting[0][0]) <= _SCORED_ROWS:
            more, table = self._waiting.popleft()
            keys += more
            tables.append(table)
        try:
            answers = scored(pa.concat_tables(tables), self._spec)
        except Exception as error:
            logger.warning("the scorer failed on a call with %d rows: %s", len(keys), type(error).__name__)
            raise RowsFailed(keys, type(error).__name__, str(error)) from None
        return list(zip(keys, answers, strict=True))


def scored(rows: pa.Table, spec: Scoring) -> list[Answer]:
    """A scorer's answers. Raises whatever the scorer raises."""
    scores = spec.scorer(rows)
    cut: Sequence[bool] = [False] * rows.num_rows
    if spec.cuts:
        cut = spec.cuts(rows).tolist()
    lengths: Sequence[int | None] = [None] * rows.num_rows
    if "tokens" in rows.column_names:
        lengths = [len(tokens) for tokens in rows["tokens"].to_pylist()]
    values = scores.tolist() if isinstance(scores, np.ndarray) else scores
    return [
        Answer(prompt_tokens=length, cut=was_cut, **{spec.fills: value})
        for length, value, was_cut in zip(lengths, values, cut, strict=True)
    ]
