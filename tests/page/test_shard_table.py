"""The table of shards: its numbers are the reports', and the rule for outliers is what it says."""

import statistics

import numpy as np
import pytest

from routelmt_batch.page.shard_table import by_reason, lines, stand_out


def by_hand(tried, failures, gains, large):
    """The rule that the page tells, shard by shard, in plain Python."""
    found = []
    shares = [large[i] / gains[i] for i in range(len(gains)) if gains[i] >= 100]
    for i in range(len(gains)):
        marks = []
        if gains[i] >= 100:
            apart = large[i] / gains[i] - statistics.median(shares)
            marks += ["share high"] if apart >= 0.10 else ["share low"] if apart <= -0.10 else []
        if failures[i] >= 10 and failures[i] / tried[i] >= 2 * sum(failures) / sum(tried):
            marks.append("failures")
        found.append(marks)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_what_stands_out_is_what_the_rule_says(seed):
    random = np.random.default_rng(seed)
    shards = int(random.integers(1, 60))
    tried = random.integers(0, 200, shards)
    gains = tried - random.binomial(tried, 0.02)
    large = random.binomial(gains, np.clip(random.normal(0.3, 0.05 * (seed % 3), shards), 0, 1))
    failures = random.binomial(tried, 0.01)
    tried[0], gains[0], large[0], failures[0] = 150, 150, 140, 30
    assert stand_out(tried, failures, gains, large) == by_hand(
        *(v.tolist() for v in (tried, failures, gains, large))
    )


def test_one_far_shard_among_few_does_not_hide_itself():
    same = np.full(6, 1000)
    large = np.array([300, 302, 299, 301, 298, 900])
    none = np.zeros(6, np.int64)
    assert stand_out(same, none, same, large) == [[], [], [], [], [], ["share high"]]


@pytest.mark.parametrize("large", [0, 1000])
def test_budgets_of_nothing_and_of_all_have_no_outliers(large):
    rows, none = np.full(3, 1000), np.zeros(3, np.int64)
    assert stand_out(rows, none, rows, np.full(3, large)) == [[], [], []]


def test_lines_add_up_to_the_job(finished):
    found, report = lines(finished), finished.report.as_json()
    assert [line["name"] for line in found] == list(finished.shards)
    assert sum(line["rows"] for line in found) == report["rows"]
    assert sum(line["large"] for line in found) == report["route"]["large"]
    for status, count in report["status"].items():
        assert sum(line[status] for line in found) == count
    total = sum(tokens for model in report["tokens"].values() for tokens in model.values())
    assert sum(sum(line["tokens"]) for line in found) == total
    assert report["status"]["failed"] and "failures" in found[-1]["marks"]
    assert by_reason(found)["engine_error"] == ("sub/c.parquet", report["status"]["failed"])
