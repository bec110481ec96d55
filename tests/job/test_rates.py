"""Hours and cost of budgets, counted by hand."""

from decimal import Decimal

import pytest
import yaml

from routelmt_batch.errors import SpecError
from routelmt_batch.job import rates
from routelmt_batch.job.rates import Estimate, estimate, measured, workload
from routelmt_batch.spec.file import load
from routelmt_batch.stages.job_report import JobReport, LaneReport, PassReport, WhatIf
from tests.conftest import COLUMNS, with_references
from tests.fake_engine import FakeEngine
from tests.stages.test_flow import BARS, run

# A million rows of 60 tokens; at 0.3 the large model gets 300,000 of 70.
LINE = WhatIf(
    fraction=Decimal("0.3"),
    rows=300_000,
    prompt_tokens=21_000_000,
    predicted_gain=1.0,
    threshold=0.5,
    all_rows=1_000_000,
    all_prompt_tokens=60_000_000,
)
FILE = {
    "router": {"rows_per_second_per_gpu": 250, "gpus": 4, "price_per_gpu_hour": 2},
    "small": {"rows_per_second_per_gpu": 50, "gpus": 2, "price_per_gpu_hour": 2},
    "large": {"prompt_tokens_per_second_per_gpu": 700, "gpus": 5, "price_per_gpu_hour": 4},
}


@pytest.fixture
def rates_file(tmp_path):
    def write(**settings):
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump(FILE | settings))
        return path

    return write


def of(path, spec) -> Estimate:
    return estimate(rates.load(path, spec), spec, LINE)


def test_hours_and_cost_side_by_side(make_spec, rates_file):
    # Router: 1,000,000 / (250 x 4) = 1,000 s. Small: 700,000 / (50 x 2) = 7,000 s. Large: 21,000,000 / (700 x 5) = 6,000 s.
    found = of(rates_file(), load(make_spec()))
    assert found.hours == pytest.approx((1_000 + 7_000) / 3_600)
    assert found.cost == pytest.approx((1_000 * 4 * 2 + 7_000 * 2 * 2 + 6_000 * 5 * 4) / 3_600)


def test_one_after_the_other_adds_hours_and_no_cost(make_spec, rates_file):
    found = of(rates_file(), load(make_spec(run__pools="sequential")))
    assert found.hours == pytest.approx((1_000 + 7_000 + 6_000) / 3_600)
    assert found.cost == of(rates_file(), load(make_spec())).cost


def test_a_start_counts_where_there_is_a_row(make_spec, rates_file):
    spec = load(make_spec())
    started = rates.load(rates_file(large=FILE["large"] | {"start_seconds": 1_500}), spec)
    assert estimate(started, spec, LINE).hours == pytest.approx((1_000 + 6_000 + 1_500) / 3_600)
    none = {"fraction": Decimal(0), "rows": 0, "prompt_tokens": 0, "predicted_gain": 0.0, "threshold": None}
    nothing = LINE.model_copy(update=none)
    # Small: 1,000,000 / 100 = 10,000 s.
    assert estimate(started, spec, nothing).hours == pytest.approx((1_000 + 10_000) / 3_600)


def test_without_every_price_there_is_no_cost(make_spec, rates_file):
    small = {key: value for key, value in FILE["small"].items() if key != "price_per_gpu_hour"}
    assert of(rates_file(small=small), load(make_spec())).cost is None


@pytest.mark.parametrize(
    ("guard", "small", "metric"),
    [
        ({}, 700_000, 0),
        ({"verify": True}, 1_000_000, 600_000),
        ({"mode": "hypothesis", "keep_small_above": 80.0}, 1_000_000, 600_000),
        ({"mode": "hypothesis", "keep_small_above": 80.0, "candidates": 5}, 1_000_000, 1_000_000),
        ({"mode": "hypothesis", "keep_small_above": 80.0, "verify": True}, 1_000_000, 900_000),
        ({"escalate_fraction": 0.01, "escalate_below": 20.0}, 700_000, 1_000_000),
    ],
)
def test_a_guard_is_work_for_small_and_metric(make_spec, guard, small, metric):
    work = workload(load(make_spec(guard=guard, metric="chrf")), LINE)
    assert [work[name].rows for name in ("router", "small", "large", "metric")] == [
        1_000_000,
        small,
        300_000,
        metric,
    ]


def test_a_metric_takes_its_time_after_the_models(make_spec, rates_file):
    spec = load(make_spec(guard={"verify": True}, metric="chrf"))
    # Small has all rows: 10,000 s. Metric: 600,000 / (100 x 2) = 3,000 s.
    path = rates_file(metric={"rows_per_second_per_gpu": 100, "gpus": 2, "price_per_gpu_hour": 1})
    found = of(path, spec)
    assert found.hours == pytest.approx((1_000 + 10_000 + 3_000) / 3_600)
    assert found.cost == pytest.approx(
        (1_000 * 4 * 2 + 10_000 * 2 * 2 + 6_000 * 5 * 4 + 3_000 * 2 * 1) / 3_600
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"large": {"gpus": 1}}, "give either rows_per_second_per_gpu or prompt_tokens_per_second_per_gpu"),
        (
            {"small": FILE["small"] | {"prompt_tokens_per_second_per_gpu": 5}},
            "give either rows_per_second_per_gpu or prompt_tokens_per_second_per_gpu",
        ),
        ({"small": FILE["small"] | {"gpus": 0}}, "small.gpus"),
        ({"small": FILE["small"] | {"price_per_hour": 2}}, "small.price_per_hour: unknown key; did you mean"),
        ({"metric": {"prompt_tokens_per_second_per_gpu": 5, "gpus": 1}}, "a metric reads no prompt"),
    ],
)
def test_a_wrong_file_is_told(make_spec, rates_file, settings, message):
    with pytest.raises(SpecError, match=message):
        rates.load(rates_file(**settings), load(make_spec()))


def test_a_guard_that_measures_needs_the_metrics_rate(make_spec, rates_file):
    spec = load(make_spec(guard={"verify": True}, metric="chrf"))
    with pytest.raises(SpecError, match="add a rate for metric"):
        rates.load(rates_file(), spec)


def a_pass(start: float, stage: str, **lanes: tuple[int, float, int]) -> PassReport:
    """`lanes`: rows, seconds and GPUs of each, by model or, of the router's, by any name."""
    return PassReport(
        name="one",
        rows=0,
        seconds=0,
        engine_start_seconds=start,
        started_ahead_seconds=0,
        rows_per_second=0,
        lanes={
            label: LaneReport(
                rows=rows, seconds=seconds, stage=stage, model=label if label in ("small", "large") else None
            )
            for label, (rows, seconds, _) in lanes.items()
        },
        gpus={label: gpus for label, (*_, gpus) in lanes.items()},
    )


def test_a_report_gives_the_rates_that_it_measured():
    passes = [
        a_pass(30, "scores", router=(900, 9, 1)),
        a_pass(0, "scores"),
        a_pass(40, "translations", large=(60, 10, 4), small=(300, 6, 1)),  # stopped, and gone on with
        a_pass(50, "translations", large=(100, 10, 4), small=(400, 4, 4)),  # another run, with more GPUs
        a_pass(1, "checks", large=(1, 50, 1), small=(1, 50, 1)),
        a_pass(60, "audit_translations", large=(1, 50, 1)),
    ]
    # 40 and 120 tokens a row in the output.
    tokens = {"small": {"in": 18_000, "out": 10_000}, "large": {"in": 9_000, "out": 9_000}}
    report = JobReport.model_construct(
        name="tonight", passes=passes, route={"small": 700, "large": 150}, tokens=tokens
    )
    text = measured(report)
    assert yaml.safe_load(text) == {
        "router": {
            "rows_per_second_per_gpu": 100,
            "start_seconds": 30,
            "gpus": 1,
            "price_per_gpu_hour": None,
        },
        # 700 rows in 6 GPU seconds of the first run, 16 of the second.
        "small": {
            "rows_per_second_per_gpu": 31.818,
            "tokens_per_second_per_gpu": 1272.727,
            "start_seconds": 50,
            "gpus": 4,
            "price_per_gpu_hour": None,
        },
        "large": {
            "rows_per_second_per_gpu": 2,
            "tokens_per_second_per_gpu": 240,
            "start_seconds": 50,
            "gpus": 4,
            "price_per_gpu_hour": None,
        },
    }
    assert text.startswith("# Measured by tonight")


@pytest.mark.parametrize("together", [False, True])
def test_a_job_that_ran_has_rates_that_a_plan_reads(make_spec, corpus, tmp_path, together):
    engine = FakeEngine(tmp_path / "sent.log")
    engine.room = together
    columns = COLUMNS | {"reference": with_references(corpus)}
    path = make_spec(guard={"verify": True}, metric="chrf", input__columns=columns)
    found = run(path, engine).report
    report = found.as_json()
    file = tmp_path / "rates.yaml"
    file.write_text(measured(found))
    found = rates.load(file, load(path))
    assert found.metric and found.small.gpus == 1
    lanes = [line["lanes"] for line in report["passes"] if line["name"] in ("large", "small", "large+small")]
    rows = {name: sum(lane[name]["rows"] for lane in lanes if name in lane) for name in ("small", "large")}
    assert rows == {"small": 65, "large": 19}  # verify: the small model translates all 65
    assert len(lanes) == (1 if together else 2)


def test_what_if_counts_all_translatable_rows(make_spec, tmp_path):
    from routelmt_batch.job import flow

    engine = FakeEngine(tmp_path / "sent.log")
    lines = flow.plan(load(make_spec()), flow.Options(), BARS, engine.opened)
    assert {line.all_rows for line in lines} == {65}
    assert lines[-1].all_prompt_tokens == lines[-1].prompt_tokens, "a budget of 1 takes every row"
    assert lines[-1].rows == 65
