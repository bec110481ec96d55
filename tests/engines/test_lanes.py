"""Blocks through a scorer in this process: skipped rows, rows that it fails on, scorers that are broken."""

import numpy as np
import pyarrow as pa
import pytest

from routelmt_batch.engines.lanes import REQUESTS, scored
from routelmt_batch.engines.scorer_actor import ScorerActor


def block(texts: list[str], skips: dict[int, str] | None = None) -> pa.Table:
    table = pa.table(
        {
            "shard": ["s"] * len(texts),
            "row": list(range(len(texts))),
            "prompt_tokens": [1] * len(texts),
            "tokenized_prompt": [[1]] * len(texts),
            "skip": [(skips or {}).get(row, "") for row in range(len(texts))],
        },
        schema=REQUESTS,
    )
    return table.append_column("source", pa.array(texts))


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


def test_skipped_rows_pass_a_scorer_by():
    found = scored(block(["aa", "bad", "c"], {1: "empty"}), Counting())
    assert found["score"].to_pylist() == [2, None, 1]
    assert found["skip"].to_pylist() == ["", "empty", ""]
    assert found["error"].to_pylist() == ["", "", ""]


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
@pytest.mark.parametrize("bad", [{0: "bad"}, {0: "bad", 1: "worse"}, {-1: "worse"}])
def test_rows_that_a_scorer_fails_on_have_the_errors_name_and_the_others_their_score(rows, bad):
    texts = ["x" * (i % 7 + 1) for i in range(rows)]
    for place, text in bad.items():
        texts[place % rows] = text
    found = scored(block(texts), Counting()).to_pylist()
    for text, line in zip(texts, found, strict=True):
        failed = {"bad": "ValueError", "worse": "KeyError"}.get(text, "")
        assert (line["error"], line["score"]) == (failed, None if failed else len(text))


def test_one_bad_row_of_many_is_found_in_few_calls():
    scorer = Counting()
    scored(block(["x"] * 500 + ["bad"] + ["x"] * 523), scorer)
    assert scorer.calls < 30


def test_a_row_that_is_skipped_is_none_of_the_failed():
    found = scored(block(["bad", "null", "x"], {1: "null"}), Counting())
    assert found["error"].to_pylist() == ["ValueError", "", ""]
    assert found["score"].to_pylist() == [None, None, 1]


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


def test_a_scorer_that_has_worked_is_not_blamed_for_a_last_block_of_bad_rows():
    with pytest.raises(ValueError, match="cannot score"):
        ScorerActor(Counting())(block(["bad", "bad"]))
    actor = ScorerActor(Counting())
    assert actor(block(["a", "bad"]))["score"].to_pylist() == [1, None]
    found = actor(block(["bad", "bad"]))
    assert found["error"].to_pylist() == ["ValueError", "ValueError"]
