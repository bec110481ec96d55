"""Rows through a scorer in this process: rows that it fails on, scorers that are broken, their results."""

import numpy as np
import pyarrow as pa
import pytest

from routelmt_batch.engines.lanes import RESULTS, Answer, as_results
from routelmt_batch.engines.models import ScorerBroken, ScorerModel, Scoring, scored
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
        for text in texts:
            if "bad" in text:
                raise ValueError(f"cannot score {text!r}")
            if "worse" in text:
                raise KeyError(text)
        return np.array([len(text) for text in texts], float)


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("bad", [{0: "bad"}, {0: "bad", 1: "worse"}, {-1: "worse"}])
def test_rows_that_a_scorer_fails_on_have_the_errors_name_and_the_others_their_score(rows, bad):
    texts = ["x" * (i % 7 + 1) for i in range(rows)]
    for place, text in bad.items():
        texts[place % rows] = text
    found = scored(block(texts), Counting())
    for text, line in zip(texts, found, strict=True):
        failed = {"bad": "ValueError", "worse": "KeyError"}.get(text, "")
        assert (line.error, line.score) == (failed, None if failed else len(text))


def test_one_bad_row_of_many_is_found_in_few_calls():
    scorer = Counting()
    scored(block(["x"] * 500 + ["bad"] + ["x"] * 523), scorer)
    assert scorer.calls < 30


def test_a_scorer_that_fails_on_every_row_ends_it_with_its_reason_at_once():
    calls = []

    def broken(rows: pa.Table) -> np.ndarray:
        calls.append(rows.num_rows)
        raise OSError("no weights in models/small")

    with pytest.raises(OSError, match="no weights in models/small"):
        scored(block(["x"] * 1024), broken)
    assert len(calls) < 12, "a model that does not load is not tried a thousand times"


def test_an_error_that_may_quote_a_row_is_named_and_not_quoted():
    with pytest.raises(RuntimeError, match="^the scorer raises ValueError on every row$") as error:
        scored(block([f"bad secret {i}" for i in range(20)]), Counting())
    assert error.value.__suppress_context__


def answers(model: ScorerModel, texts: list[str]) -> list[Answer]:
    model.add(range(len(texts)), block(texts))
    found = dict(model.step())
    assert not model.busy
    return [found[key] for key in range(len(texts))]


def test_a_scorer_that_has_worked_is_not_blamed_for_a_last_block_of_bad_rows():
    with pytest.raises(ScorerBroken, match="ValueError: cannot score"):
        answers(Scoring(Counting())(), ["bad", "bad"])
    model = Scoring(Counting())()
    assert [answer.score for answer in answers(model, ["a", "bad"])] == [1, None]
    assert [answer.error for answer in answers(model, ["bad", "bad"])] == ["ValueError", "ValueError"]


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
