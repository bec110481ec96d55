"""Rows through a scorer in this process: rows that it fails on, scorers that are broken, their results."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from routelmt_batch.engines.lanes import RESULTS, Answer, as_results
from routelmt_batch.engines.models import RowsFailed, Scoring
from tests.engines.given import requests


def block(texts: list[str]) -> pa.Table:
    return requests(source=texts)


class Counting:
    """Scores are text lengths; a text that says so raises. Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, rows: pa.Table) -> np.ndarray:
        self.calls += 1
        texts = rows["source"].to_pylist()
        if "bad" in texts:
            raise ValueError("cannot score")
        return np.array([len(text) for text in texts], float)


def test_a_scorer_that_fails_names_the_rows_and_the_error_and_goes_on():
    model = Scoring(Counting())()
    model.add([7, 9], block(["a", "bad"]))
    with pytest.raises(RowsFailed) as error:
        model.step()
    assert (list(error.value.keys), error.value.name) == ([7, 9], "ValueError")
    model.add([3], block(["abc"]))
    assert [(key, answer.score) for key, answer in model.step()] == [(3, 3)] and not model.busy


def test_a_failure_travels_whole():
    """It is raised on the other side of a pipe."""
    found = pickle.loads(pickle.dumps(RowsFailed([1, 2], "ValueError", "words")))
    assert (found.keys, found.name, found.words) == ([1, 2], "ValueError", "words")


def test_a_scorer_is_given_what_waits_in_one_go_up_to_a_thousand_rows():
    scorer = Counting()
    model = Scoring(scorer)()
    for start in range(0, 2100, 300):
        model.add(range(start, start + 300), block(["x"] * 300))
    keys = []
    while model.busy:
        keys += [key for key, _ in model.step()]
    assert sorted(keys) == list(range(2100)) and scorer.calls == 3


def test_results_are_in_the_requests_order_and_skipped_rows_among_them():
    rows = requests({1: "empty"}, source=["aa", "", "c"])
    found = as_results(rows, {2: Answer(score=1.0), 0: Answer(error="engine_error", prompt_tokens=7)})
    assert found.schema == RESULTS
    lines = found.select(["row", "skip", "error", "score", "prompt_tokens"]).to_pylist()
    assert [tuple(line.values()) for line in lines] == [
        (0, "", "engine_error", None, 7),
        (1, "empty", "", None, None),
        (2, "", "", 1.0, None),
    ]
