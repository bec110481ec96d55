"""An evaluation's JSON, pages and figures, on small tables whose numbers can be counted by hand."""

import json
from decimal import Decimal

import numpy as np
import pytest
from rich.console import Console

from routelmt_batch.errors import UsageError
from routelmt_batch.learning.evaluation.contest import Routing
from routelmt_batch.learning.evaluation.evaluation import evaluate, write
from routelmt_batch.learning.evaluation.show import table
from routelmt_batch.learning.evaluation.tables import Labels
from routelmt_batch.stats import resampling
from routelmt_batch.stats.measures import METRICS
from tests.stats.test_measures import by_definition

ROWS = 240
DIRECTIONS = ("de-en", "en-de", "en-zh")


def labels(small, large, direction=None, directions=()) -> Labels:
    small, large = np.array(small, float), np.array(large, float)
    direction = np.full(len(small), -1) if direction is None else direction
    return Labels(small, large, direction.astype(np.int32), directions, {}, np.ones(len(small), bool), [])


@pytest.fixture(scope="module")
def many() -> tuple[Labels, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    small = np.round(generator.uniform(20, 90, ROWS))
    gain = np.round(generator.normal(5, 12, ROWS) + (55 - small) / 5)
    direction = generator.choice(3, ROWS, p=[0.5, 0.4, 0.1])
    scores = {
        "routelmt": gain + generator.normal(0, 8, ROWS),
        "length": np.round(gain / 10 + generator.normal(0, 3, ROWS)),
        "holes": np.where(generator.random(ROWS) < 0.2, np.nan, gain),
    }
    return labels(small, small + gain, direction, DIRECTIONS), scores


def plain(scores) -> dict[str, Routing]:
    return {name: Routing(np.array(values, float)) for name, values in scores.items()}


@pytest.fixture(scope="module")
def evaluation(many):
    of_rows, scores = many
    return evaluate(
        of_rows, plain(scores), baselines=["random", "length"], budget=Decimal("0.3"), resamples=60, seed=7
    )


def values(part):
    return {metric: part[metric].value for metric in METRICS}


def test_every_value_is_the_definitions(many, evaluation):
    of_rows, scores = many
    for name, score in scores.items():
        router = evaluation.routers[name]
        expected = by_definition(of_rows.gain.tolist(), score.tolist(), Decimal("0.3"))
        assert values(router.overall) == pytest.approx(expected)
        each = []
        for index, direction in enumerate(DIRECTIONS):
            rows = of_rows.direction == index
            each.append(by_definition(of_rows.gain[rows].tolist(), score[rows].tolist(), Decimal("0.3")))
            assert values(router.directions[direction]) == pytest.approx(each[-1])
        mean = {metric: np.mean([one[metric] for one in each]) for metric in METRICS}
        assert values(router.macro) == pytest.approx(mean)


def test_intervals_are_percentiles_over_rows_really_resampled(many, evaluation):
    of_rows, scores = many
    found = {name: [] for name in ("routelmt", "length")}
    for stream in np.random.SeedSequence(7).spawn(60):
        counts = resampling.resample(ROWS, np.random.Generator(np.random.PCG64(stream)))
        gain = np.repeat(of_rows.gain, counts).tolist()
        for name, samples in found.items():
            samples.append(by_definition(gain, np.repeat(scores[name], counts).tolist(), Decimal("0.3")))
    for name, samples in found.items():
        for metric in METRICS:
            low, high = np.percentile([sample[metric] for sample in samples], [2.5, 97.5])
            value = evaluation.routers[name].overall[metric]
            assert (value.low, value.high) == pytest.approx((low, high))
    against = evaluation.routers["routelmt"].against_best_baseline
    apart = [
        a["mean_delta"] - b["mean_delta"] for a, b in zip(found["routelmt"], found["length"], strict=True)
    ]
    assert against.baseline == evaluation.best_baseline == "length"
    assert [against.mean_delta.low, against.mean_delta.high] == pytest.approx(
        np.percentile(apart, [2.5, 97.5]).tolist()
    )
    assert evaluation.routers["length"].against_best_baseline is None


def test_the_references_are_always_there(many, evaluation):
    of_rows, _ = many
    assert list(evaluation.routers)[-3:] == ["random", "oracle-quality", "oracle-gain"]
    oracle = evaluation.routers["oracle-gain"]
    assert values(oracle.overall)["hit_rate"] == 100 and values(oracle.overall)["spearman"] == 1
    drawn = np.random.default_rng(7).random(ROWS)
    expected = by_definition(of_rows.gain.tolist(), drawn.tolist(), Decimal("0.3"))
    assert values(evaluation.routers["random"].overall) == pytest.approx(expected)
    assert evaluation.expected_random.mean_delta == pytest.approx(of_rows.gain.mean())
    assert evaluation.expected_random.hit_rate == 30


def test_buckets_count_the_routed_rows(many, evaluation):
    of_rows, scores = many
    routed = np.sort(of_rows.gain[np.argsort(-scores["routelmt"], kind="stable")[:72]])
    buckets = evaluation.routers["routelmt"].buckets
    assert [(bucket.over, bucket.to) for bucket in buckets][1] == (-20, -5)
    assert buckets[1].rows == ((routed > -20) & (routed <= -5)).sum()
    assert sum(bucket.rows for bucket in buckets) == evaluation.k == 72
    assert sum(bucket.percent for bucket in buckets) == pytest.approx(100)


def test_curves_run_from_the_small_models_quality_to_the_large_ones(many, evaluation):
    of_rows, scores = many
    curve = evaluation.routers["routelmt"].curve
    assert len(curve.budget) == 101 and curve.budget[29] == 0.29
    assert curve.quality[0] == pytest.approx(of_rows.quality_small.mean())
    assert curve.quality[100] == pytest.approx(of_rows.quality_large.mean())
    routed = np.argsort(-scores["routelmt"], kind="stable")[: int(0.29 * 240)]
    mixed = of_rows.quality_small.copy()
    mixed[routed] = of_rows.quality_large[routed]
    assert curve.quality[29] == pytest.approx(mixed.mean())


def test_the_area_lies_between_random_at_0_and_the_oracle_at_1(evaluation):
    areas = {name: router.area for name, router in evaluation.routers.items()}
    assert areas["oracle-gain"]["of_oracle-gain"] == 1 and areas["oracle-quality"]["of_oracle-quality"] == 1
    assert 0 < areas["length"]["of_oracle-gain"] < areas["routelmt"]["of_oracle-gain"] < 1


def test_thin_directions_and_missing_scores_are_told(evaluation):
    rows = evaluation.directions["en-zh"].rows
    assert rows < 30
    assert any(w.startswith(f"en-zh: {rows} rows are few") for w in evaluation.warnings)
    assert any(w.startswith("holes: ") and "have no score" in w for w in evaluation.warnings)


def small_one(gain, score, budget="0.5", **options):
    of_rows = labels([50.0] * len(gain), 50 + np.array(gain, float))
    return evaluate(of_rows, plain({"r": score}), ["random"], Decimal(budget), resamples=20, **options)


def test_a_budget_of_no_row_leaves_nulls_and_says_so():
    found = small_one([1, 2, 3], [1, 2, 3], budget="0.1")
    of_directions = labels([1, 2, 3, 4], [2, 4, 6, 8], np.array([0, 0, 1, 1]), ("en-de", "en-zh"))
    thin = evaluate(of_directions, plain({"r": [1, 2, 3, 4]}), ["random"], Decimal("0.1"), resamples=20)
    assert found.k == 0 and found.best_baseline is None
    assert values(found.routers["r"].overall)["mean_delta"] is None
    for one, where in ((found, "overall"), (thin, "overall, en-de, en-zh")):
        told = [warning for warning in one.warnings if "one row" in warning or "hit_rate" in warning]
        assert told == [
            f"{where}: --budget 0.1 is less than one row there: nothing is routed, and only Spearman is defined"
        ]


def test_constant_gains_leave_nulls_and_say_so():
    found = small_one([2, 2, 2, 2], [1, 2, 3, 4])
    router = found.routers["r"]
    assert router.overall["spearman"].as_json() == {"value": None, "low": None, "high": None}
    assert router.area["of_oracle-gain"] is None
    assert any("every gain is 2: routing makes no difference here" in warning for warning in found.warnings)
    assert "overall: spearman is undefined for every router: all gains are equal" in found.warnings


def test_gains_that_differ_by_rounding_alone_are_constant():
    small = np.random.default_rng(0).uniform(20, 80, 300)
    of_rows = labels(small, small + 3)
    found = evaluate(of_rows, plain({"r": small}), ["random"], Decimal("0.3"), resamples=20)
    assert found.routers["oracle-gain"].overall["spearman"].value is None
    assert any("every gain is 3: routing makes no difference here" in warning for warning in found.warnings)


def test_a_router_of_equal_scores_is_told_and_no_best_baseline():
    """The first rows gain most, so that taking them looks like the best of baselines."""
    generator = np.random.default_rng(0)
    small, gain = generator.uniform(20, 80, 300), np.arange(300.0, 0, -1)
    direction = np.arange(300) % 2
    part = np.where(direction == 0, 1.0, generator.random(300))
    found = evaluate(
        labels(small, small + gain, direction, ("en-de", "en-zh")),
        plain({"level": np.ones(300), "part": part}),
        ["random", "level"],
        Decimal("0.3"),
        resamples=20,
    )
    assert found.best_baseline == "random"
    assert [warning for warning in found.warnings if "all scores of" in warning] == [
        "overall: all scores of level are equal, so the routed rows are the first 90",
        "en-de: all scores of part are equal, so the routed rows are the first 45",
    ]
    assert "macro: spearman of part has no mean over directions: it is undefined in en-de" in found.warnings


def test_constant_and_missing_scores_leave_spearman_null_and_say_so():
    found = small_one([1, 2, 3, 4], [7] * 4)
    assert "overall: spearman is undefined for r, oracle-quality: all scores are equal" in found.warnings
    found = small_one([1, 2, 3, 4], [np.nan] * 4)
    assert "overall: spearman is undefined for r: fewer than two rows have a score" in found.warnings
    assert any("2 of the 2 routed rows have no score" in warning for warning in found.warnings)


def test_losses_everywhere_leave_the_oracles_share_null():
    found = small_one([-1, -2, -3, -4], [1, 2, 3, 4])
    assert found.routers["r"].overall["oracle_share"].value is None
    assert any("oracle_share is undefined" in warning for warning in found.warnings)


def test_resamples_in_which_a_value_is_undefined_are_counted():
    found = small_one([1, 2], [1, 2])
    assert any("spearman is undefined in up to" in warning for warning in found.warnings)


def test_a_severe_loss_is_what_the_caller_says():
    found = small_one([-3, -2, 5, 1], [4, 3, 2, 1], severe=-2.0)
    assert found.routers["r"].overall["severe_loss_rate"].value == 100
    assert [bucket.to for bucket in found.routers["r"].buckets] == [-20, -2, 0, 5, 20, None]


@pytest.mark.parametrize(
    ("scores", "baselines", "budget", "message"),
    [
        ({"r": [1.0, 2.0]}, [], "1.5", "--budget 1.5: a budget is a fraction"),
        ({"r": [1.0, 2.0]}, [], "NaN", "--budget NaN"),
        ({"r": [1.0]}, [], "0.5", "router 'r': 1 scores for 2 rows"),
        ({"oracle-gain": [1.0, 2.0]}, [], "0.5", "the evaluation adds a router of this name"),
        (
            {"length": [1.0, 2.0]},
            ["lenght"],
            "0.5",
            "baseline 'lenght': no such router; did you mean 'length'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(scores, baselines, budget, message):
    with pytest.raises(UsageError, match=message):
        evaluate(
            labels([1, 2], [3, 5]),
            plain(scores),
            baselines,
            Decimal(budget),
        )


def test_files_are_written_and_the_same_twice(evaluation, tmp_path):
    for folder in ("a", "b"):
        write(evaluation, tmp_path / folder)
    names = {"evaluation.json", "evaluation.md", "evaluation.png", "evaluation.svg"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "evaluation.json").read_text()) == evaluation.as_json()
    page = (tmp_path / "a" / "evaluation.md").read_text()
    assert "| routelmt | " in page and "en-zh" in page and "**Warnings**" in page


def test_the_page_and_the_table_hold_undefined_values_too(tmp_path, capsys):
    found = small_one([2, 2, 2, 2], [1, 2, 3, 4], budget="0")
    write(found, tmp_path)
    Console(width=120).print(table(found))
    for text in (capsys.readouterr().out, (tmp_path / "evaluation.md").read_text()):
        assert "nan" not in text.lower() and "None" not in text


def test_the_terminals_table_has_the_best_router_first(evaluation, capsys):
    Console(width=140).print(table(evaluation))
    printed = capsys.readouterr().out
    assert printed.index("oracle-gain") < printed.index("routelmt") < printed.index("random ")
    assert "72 of 240 rows routed (budget 0.3)" in printed and "over length" in printed
