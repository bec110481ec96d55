"""What runs in an engine's process: vLLM that translates, or a scorer. Both take rows and answer them.

An engine's process imports this module, also in the quality environment; what a model needs is imported
when it is loaded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from routelmt_batch.engines.lanes import Answer, Mask, Scorer, Scores
from routelmt_batch.rows import EMPTY_OUTPUT, ENGINE_ERROR

logger = logging.getLogger(__name__)
Keyed = tuple[int, Answer]
_SCORED_ROWS = 1024  # that a scorer is given at once
_PROBES = 8


class ScorerBroken(Exception):
    """A scorer fails on whatever row it is given."""


class Model(Protocol):
    """A loaded model. `add` takes rows by their keys, a table of REQUESTS with a column `tokens` where the
    lane has a prompter; `step` works on them and answers some or none."""

    def add(self, keys: Sequence[int], rows: pa.Table) -> None: ...

    def step(self) -> list[Keyed]: ...

    @property
    def busy(self) -> bool:
        """Whether rows wait for an answer."""
        ...


class Load(Protocol):
    """Loads a model, in the process that will run it. It travels there: it must pickle."""

    @property
    def room(self) -> int:
        """Rows that keep the model busy: it is given no more at a time."""
        ...

    def __call__(self) -> Model: ...


@dataclass(frozen=True)
class Generation:
    """vLLM, decoding greedily.

    LLMEngine's `add_request` and `step` are fed while it runs, so that its sequences never run dry between
    batches (docs.vllm.ai, LLMEngine). It gets token ids and gives token ids: texts are decoded in one go.
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
    """See Model."""

    def __init__(self, spec: Generation) -> None:
        from vllm import EngineArgs, LLMEngine, SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        self._invalid = VLLMClientError
        self._engine = LLMEngine.from_engine_args(EngineArgs(**spec.engine))
        self._tokenizer = self._engine.get_tokenizer()
        end = self._tokenizer.eos_token_id
        self._end_tokens = {*spec.end_tokens, *([end] if isinstance(end, int) else [])}
        self._params = SamplingParams(
            temperature=0.0,
            max_tokens=spec.max_output_tokens,
            stop_token_ids=sorted(self._end_tokens),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # a deep copy for each row is a twelfth of the time of a small model
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
            except (ValueError, self._invalid) as error:  # no prompt for this model; the message may quote it
                logger.warning("a row was refused: %s", type(error).__name__)
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
        found = []
        for output, tokens, text, end in zip(done, ids, texts, ended, strict=True):
            key = int(output.request_id)
            prompt_tokens = self._prompt_tokens.pop(key)
            if text.strip():
                answer = Answer("", "", prompt_tokens, None, None, text, len(tokens), not end)
            else:
                answer = Answer(error=EMPTY_OUTPUT, prompt_tokens=prompt_tokens)
            found.append((key, answer))
        return refused + found


@runtime_checkable
class Loading(Protocol):
    """A scorer with a model that can be loaded before its first row."""

    def load(self) -> object: ...


@dataclass(frozen=True)
class Scoring:
    """A scorer, given as many rows at once as wait, up to `_SCORED_ROWS`."""

    scorer: Scorer
    cuts: Callable[[pa.Table], Mask] | None = None

    @property
    def room(self) -> int:
        return 2 * _SCORED_ROWS

    def __call__(self) -> ScorerModel:
        return ScorerModel(self)


class ScorerModel:
    """See Model."""

    def __init__(self, spec: Scoring) -> None:
        self._scorer = spec.scorer
        self._cuts = spec.cuts
        self._proven = False
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
            answers = scored(pa.concat_tables(tables), self._scorer, self._cuts, self._proven)
        except Exception as error:
            raise ScorerBroken(f"{type(error).__name__}: {error}") from error
        self._proven = self._proven or any(not answer.error for answer in answers)
        return list(zip(keys, answers, strict=True))


def scored(
    rows: pa.Table, scorer: Scorer, cuts: Callable[[pa.Table], Mask] | None = None, proven: bool = False
) -> list[Answer]:
    """A scorer's answers; rows on which it raises have an `error`.

    Args:
        proven: it has scored rows before, so where it fails the rows are at fault.

    Raises:
        Exception: what the scorer raises, if it does so on whatever row it is given; see `_blame_rows`.
    """
    if not rows.num_rows:
        return []
    scores, errors = _tried(rows, scorer, proven)
    cut = np.zeros(rows.num_rows, bool)
    good = errors == ""
    if cuts and good.any():
        cut[good] = cuts(rows.filter(pa.array(good)))
    lengths: Sequence[int | None] = [None] * rows.num_rows
    if "tokens" in rows.column_names:
        lengths = [len(tokens) for tokens in rows["tokens"].to_pylist()]
    return [
        Answer("", error, length, None if error else score, was_cut)
        for error, length, score, was_cut in zip(errors, lengths, scores.tolist(), cut.tolist(), strict=True)
    ]


def _tried(rows: pa.Table, scorer: Scorer, blamed: bool = False) -> tuple[Scores, npt.NDArray[np.object_]]:
    """Scores, and the name of the error of each row that fails alone; the others are found by halves.

    `blamed`: where it fails, the scorer is not at fault.
    """
    try:
        return scorer(rows), np.full(rows.num_rows, "", object)
    except Exception as error:
        if rows.num_rows == 1:
            # The name alone: a message may quote the row.
            return np.array([np.nan]), np.array([type(error).__name__], object)
        if not blamed:
            _blame_rows(rows, scorer, error)
    half = rows.num_rows // 2
    parts = [_tried(part, scorer, blamed=True) for part in (rows.slice(0, half), rows.slice(half))]
    scores, errors = zip(*parts, strict=True)
    return np.concatenate(scores), np.concatenate(errors)


def _blame_rows(rows: pa.Table, scorer: Scorer, error: Exception) -> None:
    """Raise if it is the scorer that fails, such as one whose model does not load, and not some row.

    It is the scorer if rows from all over the block fail, each alone, with the same error.

    Raises:
        Exception: `error`, or its name alone where the rows' errors differ in their text, which may
            then quote a row.
    """
    told = {str(error)}
    for place in np.unique(np.linspace(0, rows.num_rows - 1, _PROBES).astype(int)):
        try:
            scorer(rows.slice(place, 1))
        except Exception as again:
            if type(again) is not type(error):
                return
            told.add(str(again))
        else:
            return
    if len(told) == 1:
        raise error
    raise RuntimeError(f"the scorer raises {type(error).__name__} on every row") from None
