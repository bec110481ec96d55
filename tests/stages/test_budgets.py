"""Budgets in calls, tokens, seconds and money, and by direction: whole jobs against a full sort."""

import json
import math
from collections import Counter
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from routelmt_batch.directions import number
from routelmt_batch.errors import OutputError, SpecError, UsageError
from routelmt_batch.job import flow
from routelmt_batch.spec.file import load
from routelmt_batch.stages.costs import AS_LONG_AS_THE_PROMPT, MICRO, Costs, Line
from routelmt_batch.stages.lengths import Lengths
from tests import oracle
from tests.conftest import write_shard
from tests.job.test_rates import FILE
from tests.stages.test_flow import BARS, engine, run

pytestmark = pytest.mark.usefixtures("no_page")
__all__ = ["engine"]  # a fixture
LONGEST = 64  # max_output_tokens of the specs
# 200 tokens a second; 1 usd buys 100,000 tokens.
LARGE = FILE["large"] | {"tokens_per_second_per_gpu": 100, "gpus": 2, "price_per_gpu_hour": 3.6}
Scored = dict[tuple[str, int], dict]


@pytest.fixture
def corpus(corpus):
    """The corpus, and two shards of other directions."""
    for name, source, target in (("e", "de", "en"), ("f", "en", "zh")):
        columns = {"from": pa.array([source] * 25), "to": pa.array([target] * 25)}
        write_shard(
            corpus / f"{name}.parquet", [f"Text {i} " + "word " * (i % 11) for i in range(25)], **columns
        )
    return corpus


@pytest.fixture
def rates_file(tmp_path):
    def write(**large):
        path = tmp_path / "rates.yaml"
        path.write_text(yaml.safe_dump(FILE | {"large": LARGE | large}))
        return str(path)

    return write


def cost(line: dict, output: int | None = None) -> int:
    """Tokens of a row: its prompt's, and by default as many again."""
    prompt = line["prompt_tokens"]
    return prompt + min(max(prompt if output is None else output, 1), LONGEST)


def with_gain(scored: Scored) -> Scored:
    return {key: line for key, line in scored.items() if line["gain"] is not None}


def by_value(scored: Scored, value) -> list[tuple[str, int]]:
    rows = with_gain(scored)
    return sorted(rows, key=lambda key: (-value(rows[key]) + 0.0, key[0].encode(), key[1]))


def per_cost(line: dict, output: int | None = None) -> float:
    return float(np.float32(line["gain"] / (cost(line, output) * MICRO)))


def prefix(scored: Scored, order: list[tuple[str, int]], amount: float, output: int | None = None) -> set:
    taken, spent = set(), 0
    for key in order:
        spent += cost(scored[key], output)
        if spent > amount:
            break
        taken.add(key)
    return taken


def planned(output) -> set[tuple[str, int]]:
    found = set()
    for path in sorted((output / "data").rglob("*.parquet")):
        routes = pq.read_table(path)["planned_route"].to_pylist()
        shard = path.relative_to(output / "data").as_posix()
        found |= {(shard, row) for row, route in enumerate(routes) if route == "large"}
    return found


@pytest.mark.parametrize("amount", ["0tokens", "1500tokens", "1499.5tokens", "999999tokens"])
def test_tokens_buy_the_highest_gains_per_token(make_spec, corpus, tmp_path, engine, amount):
    report = run(make_spec(budget={"amount": amount}), engine).report.as_json()
    scored = oracle.scores(tmp_path / "out")
    limit = float(amount.removesuffix("tokens"))
    wanted = prefix(scored, by_value(scored, per_cost), limit)
    assert planned(tmp_path / "out") == wanted
    spent = sum(cost(scored[key]) for key in wanted)
    budget, total = report["budget"], sum(map(cost, with_gain(scored).values()))
    assert (budget["unit"], budget["amount"], budget["fraction"]) == ("tokens", amount, None)
    assert (budget["spent"], budget["budgeted"]) == (spent, min(limit, total))
    assert budget["planned"] == budget["places"] == len(wanted) and budget["unfilled"] == 0
    assert report["threshold"] is None
    last = min((scored[key]["gain"] / cost(scored[key]) for key in wanted), default=None)
    assert budget["gain_per_cost"] == (last if last is None else pytest.approx(last, rel=1e-6))
    routed = sorted(scored[key]["gain"] for key in wanted)
    deciles = [routed[-(-len(routed) * tenth // 10) - 1] for tenth in range(1, 10)] if routed else []
    assert report["gain"]["routed"]["deciles"] == deciles
    oracle.check_report(tmp_path / "out", "job")


@pytest.mark.parametrize("amount", ["7s", "0.014usd", "1400tokens"])
def test_time_and_money_buy_tokens_at_the_large_models_rates(
    make_spec, corpus, tmp_path, engine, rates_file, amount
):
    path = make_spec(budget={"amount": amount, "rates": rates_file()})
    budget = run(path, engine).report.as_json()["budget"]
    scored = oracle.scores(tmp_path / "out")
    wanted = prefix(scored, by_value(scored, per_cost), 1400)
    assert wanted and planned(tmp_path / "out") == wanted
    tokens = sum(cost(scored[key]) for key in wanted)
    unit = {"seconds": 200, "cost": 100_000, "tokens": 1}[budget["unit"]]
    assert budget["spent"] == pytest.approx(tokens / unit)


def test_a_fraction_is_of_what_all_rows_cost(make_spec, corpus, tmp_path, engine):
    run(make_spec(budget={"fraction": 0.29, "unit": "tokens"}), engine)
    scored = oracle.scores(tmp_path / "out")
    total = sum(map(cost, with_gain(scored).values()))
    assert planned(tmp_path / "out") == prefix(scored, by_value(scored, per_cost), math.floor(total * 0.29))


def test_a_lowest_gain_per_cost_stops_the_spending(make_spec, corpus, tmp_path, engine):
    run(make_spec(budget={"fraction": 1, "unit": "tokens", "min_gain_per_cost": 0.02}), engine)
    scored = with_gain(oracle.scores(tmp_path / "out"))
    wanted = {key for key, line in scored.items() if line["gain"] / cost(line) >= 0.02}
    assert 0 < len(wanted) < len(scored) and planned(tmp_path / "out") == wanted


@pytest.mark.parametrize(("amount", "places"), [("0calls", 0), ("20calls", 20), ("200000calls", 115)])
def test_a_number_of_calls_takes_the_first_rows_by_gain(make_spec, corpus, tmp_path, engine, amount, places):
    budget = run(make_spec(budget={"amount": amount}), engine).report.as_json()["budget"]
    scored = oracle.scores(tmp_path / "out")
    wanted = set(by_value(scored, lambda line: line["gain"])[:places])
    assert planned(tmp_path / "out") == wanted and budget["places"] == places


@pytest.mark.parametrize("unit", ["calls", "tokens"])
def test_directions_have_floors_and_ceilings(make_spec, corpus, tmp_path, engine, unit):
    shares = {"de-en": {"min": 0.5}, "en-zh": {"max": 0.1}}
    report = run(make_spec(budget={"fraction": 0.3, "unit": unit, "directions": shares}), engine).report
    scored = with_gain(oracle.scores(tmp_path / "out"))
    value = (lambda line: line["gain"]) if unit == "calls" else per_cost
    price = (lambda line: 1) if unit == "calls" else cost
    left = math.floor(Decimal("0.3") * sum(map(price, scored.values())))
    order, seen, wanted, rest = by_value(scored, value), Counter(), set(), []
    for key in order:
        direction = scored[key]["direction"]
        seen[direction] += 1
        if direction == number("de-en") and seen[direction] <= 13:  # ceil(0.5 x 25)
            wanted.add(key)
            left -= price(scored[key])
        elif direction != number("en-zh") or seen[direction] <= 2:  # floor(0.1 x 25)
            rest.append(key)
    for key in rest:
        left -= price(scored[key])
        if left < 0:
            break
        wanted.add(key)
    assert planned(tmp_path / "out") == wanted
    counts = report.as_json()["direction"]
    assert counts["de-en"]["planned_large"] >= 13 and counts["en-zh"]["planned_large"] <= 2
    assert report.as_json()["budget"]["planned"] == len(wanted)


def test_floors_above_the_budget_are_refused_with_the_numbers(make_spec, corpus, engine):
    budget = {"amount": "12calls", "directions": {"de-en": {"min": 0.5}}}
    with pytest.raises(UsageError, match=r"shares need 13 calls \(de-en 13 rows\), but the budget allows 12"):
        run(make_spec(budget=budget), engine)
    run(make_spec(budget=budget | {"amount": "13calls"}), engine)


def test_a_plan_compares_what_the_same_amount_buys(make_spec, corpus, tmp_path, engine):
    spec = load(make_spec(budget={"fraction": 0.3, "unit": "tokens"}))
    lines = flow.plan(spec, flow.Options(), BARS, engine.opened)
    scored = oracle.scores(tmp_path / "out")
    total = sum(map(cost, with_gain(scored).values()))
    orders = [by_value(scored, value) for value in (per_cost, lambda line: line["gain"])]
    assert len(lines) == 20
    for line in lines:
        limit = math.floor(line.fraction * total * MICRO) / MICRO
        taken, by_gain = (prefix(scored, order, limit) for order in orders)
        assert line.rows == len(taken)
        assert line.spent == pytest.approx(sum(cost(scored[key]) for key in taken))
        assert line.predicted_gain == pytest.approx(sum(scored[key]["gain"] for key in taken))
        assert line.predicted_gain_by_gain == pytest.approx(sum(scored[key]["gain"] for key in by_gain))
        assert line.predicted_gain >= line.predicted_gain_by_gain - 3, "but for what one more row costs"


def test_lengths_of_an_earlier_job_say_what_rows_cost(make_spec, corpus, tmp_path, engine):
    first = run(make_spec(budget__fraction=0.5), engine).report.as_json()
    routed = planned(tmp_path / "out")
    scored = oracle.scores(tmp_path / "out")
    sums = first["lengths"]
    assert sum(line["rows"] for line in sums.values()) == len(routed)
    assert sum(line["prompt"] for line in sums.values()) == first["tokens"]["large"]["in"]
    assert sum(line["output"] for line in sums.values()) == 5 * len(routed)  # the engine's own length
    budget = {"amount": "900tokens", "fitted_on": str(tmp_path / "out")}
    second = run(make_spec(budget=budget, output__uri=str(tmp_path / "second")), engine).report.as_json()
    wanted = prefix(scored, by_value(scored, lambda line: per_cost(line, 5)), 900, 5)
    assert planned(tmp_path / "second") == wanted
    fits = second["budget"]["expected_output"]
    assert {line["error"] for line in fits.values()} == {0}, "all lengths are 5"


def test_a_line_is_the_least_squares_fit():
    random = np.random.default_rng(11)
    x = random.integers(10, 90, 200)
    y = np.rint(4 + 1.3 * x + random.normal(0, 6, 200)).astype(int).clip(1)
    products = [x, y, x * x, x * y, y * y]
    line = Line.fitted(
        Lengths(
            **dict(zip(list(Lengths.model_fields), [200, *(int(p.sum()) for p in products)], strict=True))
        )
    )
    slope, intercept = np.polyfit(x, y, 1)
    left = y - intercept - slope * x
    assert (line.slope, line.intercept) == (round(slope * MICRO), round(intercept * MICRO))
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert line.error == pytest.approx(math.sqrt((left**2).mean()) / y.mean())


def test_a_direction_with_few_translations_has_the_line_of_all():
    def lengths(output: int, rows: int) -> Lengths:
        sums = {
            "prompt": 10,
            "prompt_squared": 100,
            "prompt_output": 10 * output,
            "output_squared": output**2,
        }
        return Lengths(
            rows=rows, output=rows * output, **{name: rows * value for name, value in sums.items()}
        )

    costs = Costs.fitted({"en-de": lengths(20, 60), "en-zh": lengths(8, 20)}, longest=15)
    directions = np.array([number("en-de"), number("en-zh"), -1], np.int16)
    found = costs(np.full(3, 10), directions) / MICRO
    assert found.tolist() == [10 + 15, 10 + 15, 10 + 15], "20 and 17 are more than the longest"
    assert (costs.model_copy(update={"longest": 50})(np.full(3, 10), directions) / MICRO).tolist() == [
        30,
        27,
        27,
    ]
    assert Costs(lines={}, others=AS_LONG_AS_THE_PROMPT, longest=50)(np.array([0]), directions[:1]) == MICRO


def test_a_job_that_was_stopped_goes_on_with_its_costs(make_spec, corpus, tmp_path, engine, rates_file):
    path = make_spec(budget={"amount": "7s", "rates": rates_file(), "directions": {"de-en": {"min": 0.2}}})
    with engine.stopping(lambda label, row: label == "small"):
        run(path, engine)
    with pytest.raises(OutputError, match=r"frozen at budget.amount 7s.*has budget.amount 6s"):
        run(path, engine, ("budget.amount=6s",))
    rates_file(tokens_per_second_per_gpu=90)
    with pytest.raises(OutputError, match="by other rates or lengths"):
        run(path, engine)
    rates_file()
    before = json.loads((tmp_path / "out/_job/plan/plan.json").read_text())
    run(path, engine)
    after = json.loads((tmp_path / "out/_job/plan/plan.json").read_text())
    assert after | {"epoch": 0} == before | {"epoch": 0}
    assert len(planned(tmp_path / "out")) == after["large"]


@pytest.mark.parametrize(
    ("budget", "large", "error", "message"),
    [
        ({"amount": "3h"}, None, UsageError, "a budget in seconds needs the large model's rates"),
        ({"amount": "3h"}, {"tokens_per_second_per_gpu": None}, SpecError, "needs large.tokens_per_second"),
        ({"amount": "35usd"}, {"price_per_gpu_hour": None}, SpecError, "needs large.price_per_gpu_hour"),
        ({"amount": "35usd"}, {"price_per_gpu_hour": 0}, SpecError, "needs large.price_per_gpu_hour"),
        (
            {"amount": "9tokens", "fitted_on": "nowhere"},
            None,
            OutputError,
            "fitted_on .*nowhere: nothing finished",
        ),
    ],
)
def test_what_a_unit_needs_is_told_before_anything_runs(
    make_spec, corpus, engine, rates_file, budget, large, error, message
):
    rates = {} if large is None else {"rates": rates_file(**large)}
    with pytest.raises(error, match=message):
        run(make_spec(budget=budget | rates), engine)
    assert not engine.lanes_together


def test_a_router_without_gains_has_no_gain_per_cost(make_spec, corpus, engine):
    with pytest.raises(UsageError, match="random are not gains, so there is no gain per cost"):
        run(make_spec(router={"kind": "random"}, budget={"amount": "900tokens"}), engine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["budget.amount=35usd"], "give either budget.fraction, such as 0.3, or budget.amount"),
        (["budget.fraction="], "give either budget.fraction, such as 0.3, or budget.amount"),
        (["budget.unit=hours"], "Input should be 'calls', 'tokens', 'seconds' or 'cost'"),
        (["budget.fraction=", "budget.amount=35eur"], "'35eur': give an amount with its unit"),
        (["budget.fraction=", "budget.amount=35"], "give an amount with its unit"),
        (["budget.fraction=", "budget.amount=1.5calls"], "give a whole number of calls"),
        (["budget.fraction=", "budget.amount=3h", "budget.unit=cost"], "is in seconds, unit is cost"),
        (
            ["budget.unit=tokens", "budget.min_gain=1"],
            "give min_gain_per_cost, because unit tokens ranks by it",
        ),
        (["budget.min_gain_per_cost=1"], "min_gain_per_cost needs unit tokens, seconds or cost"),
        (["budget.unit=tokens", "budget.threshold=1"], "unit tokens and threshold are two rules"),
        (["budget.directions={en-zh: {min: 0.1}}", "budget.threshold=1"], "directions and threshold are two"),
        (["budget.directions={zh: {min: 0.1}}"], "'zh' is not a direction in LMT's codes"),
        (["budget.directions={en-zh: {min: 0.5, max: 0.1}}"], "min 0.5 is more than max 0.1"),
        (["budget.directions={en-zh: {min: 2}}"], "less than or equal to 1"),
        (["budget.directions={en-zh: {mn: 0.1}}"], "unknown key; did you mean 'min'? (known here: min, max)"),
        (
            ["budget.unit=tokens", "guard={mode: hypothesis, keep_small_above: 80}", "metric=chrf"],
            "budget.unit tokens: the guard moves calls between rows that differ in cost",
        ),
        (
            ["budget.directions={en-zh: {min: 0.1}}", "guard.escalate_fraction=0.1"],
            "budget.directions: the guard moves calls",
        ),
    ],
)
def test_a_budget_that_says_two_things_is_refused(make_spec, settings, message):
    with pytest.raises(SpecError) as caught:
        load(make_spec(), settings)
    assert message in str(caught.value)


def test_an_option_replaces_a_fraction_by_an_amount_and_back(make_spec):
    by_fraction, by_amount = make_spec(budget={"fraction": 0.3, "unit": "tokens"}), {"amount": "900tokens"}
    found = load(by_fraction, budget_fraction="35usd").budget
    assert (found.amount, found.fraction, found.measure) == ("35usd", None, "cost")
    back = load(make_spec(budget=by_amount), budget_fraction="0.2").budget
    assert (back.amount, back.fraction, back.measure) == (None, Decimal("0.2"), "calls")
    assert load(make_spec(budget=by_amount), budget_fraction="1h30m").budget.measure == "seconds"
    with pytest.raises(
        SpecError, match=r"^--budget 35eur: not valid\n  budget.amount: '35eur': give an amount"
    ):
        load(by_fraction, budget_fraction="35eur")


def test_plan_shows_what_each_share_of_the_money_buys(make_spec, corpus, tmp_path, invoke, rates_file):
    result = invoke("plan", make_spec(), "--budget", "0.01usd", "--rates", rates_file())
    assert result.exit_code == 0, result.output
    assert "by gain alone" in result.output and "threshold, gain/cost" in result.output
    budgets = json.loads(result.stdout.splitlines()[-1])["budgets"]
    scored = with_gain(oracle.scores(tmp_path / "out"))
    assert budgets[-1]["spent"] == pytest.approx(sum(map(cost, scored.values())) / 100_000)
    again = invoke("run", make_spec(), "--budget", "0.01usd", "--rates", rates_file())
    assert again.exit_code == 0 and "0.01usd: " in again.output


def test_a_report_says_what_was_spent_and_how_well_lengths_fit(make_spec, corpus, tmp_path, invoke):
    budget = {"amount": "1500tokens"}
    assert invoke("run", make_spec(budget=budget)).exit_code == 0
    shown = invoke("report", tmp_path / "out").output
    assert "1500tokens: " in shown and " of 1,500 tokens expected" in shown
    assert "predicted gain for 1 of tokens" in shown
    assert invoke("report", tmp_path / "out", "--html").exit_code == 0
    page = (tmp_path / "out/reports/index.html").read_text()
    assert "rule 1500tokens (tokens)" in page and "highest gain per cost first" in page


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"amount": "20calls"}, "20calls: at most 20 calls to large"),
        ({"amount": "200000calls"}, "200000calls: at most 121 calls to large"),
        ({"amount": "9tokens"}, "9tokens; the highest gain per cost to large first"),
        (
            {"fraction": 0.3, "unit": "tokens"},
            "0.3 of what all rows cost, in tokens; the highest gain per cost to large first",
        ),
    ],
)
def test_a_dry_run_says_what_the_budget_is(make_spec, corpus, budget, words):
    assert flow.dry_run(load(make_spec(budget=budget)), None, None, BARS)["budget"] == words
