"""Routing by a score's threshold: the plan, the cap, and what the report says of them."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy.stats import betabinom

from routelmt_batch.cli import show
from routelmt_batch.errors import OutputError, UsageError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from tests import oracle
from tests.conftest import MODELS
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("no_page")


def run(spec: Path, engine: FakeEngine) -> flow.Outcome:
    return flow.run(load(spec), flow.Options(), Bars.none(), engine.opened)


def told(outcome: flow.Outcome) -> str:
    return " ".join(outcome.report.as_json()["warnings"])


def printed(outcome: flow.Outcome) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(show.job(outcome.report))
    return capture.get()


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path / "sent.log")


def test_a_threshold_routes_every_row_that_reaches_it(make_spec, tmp_path, engine):
    outcome = run(make_spec(budget__threshold=2.0), engine)
    scored = oracle.scores(tmp_path / "out")
    expected = {key for key, line in scored.items() if line["gain"] is not None and line["gain"] >= 2.0}
    assert 0 < len(expected) < len(scored)
    assert outcome.report.as_json()["planned_route"]["large"] == len(expected)
    plan = json.loads((tmp_path / "out/_job/plan/plan.json").read_text())
    assert (plan["at_least"], plan["large"]) == (2.0, len(expected))
    for shard in {key[0] for key in scored}:
        table = pq.read_table(tmp_path / "out" / "data" / shard)
        for row, route in enumerate(table["planned_route"].to_pylist()):
            assert (route == "large") == ((shard, row) in expected)
    realised = outcome.report.as_json()["fraction"]["planned"]
    assert realised == len(expected) / outcome.report.as_json()["budget"]["rows_with_gain"]


def test_a_cap_keeps_the_highest_of_the_rows_over_the_threshold(make_spec, corpus, tmp_path, engine):
    outcome = run(make_spec(budget__threshold=-3.0, budget__cap=0.3), engine)
    # Every row reaches the lowest gain: what is left is the budget's own rule.
    oracle.check(tmp_path / "out", corpus, "0.3")
    over = outcome.report.as_json()["budget"]["reached"] - 19
    assert f"the cap of 19 rows was reached; {over} rows over the threshold went to small" in told(outcome)


def test_a_cap_that_holds_no_row_back_is_no_warning(make_spec, tmp_path, engine):
    """Exactly as many rows reach the threshold as the cap allows."""
    run(make_spec(), engine)
    gains = [line["gain"] for line in oracle.scores(tmp_path / "out").values() if line["gain"] is not None]
    reach = sum(gain >= 2.0 for gain in gains)
    assert 0 < reach < len(gains) == 65
    cap = f"{(reach + 0.5) / len(gains):.4f}"  # floor gives `reach` places
    shutil.rmtree(tmp_path / "out")
    outcome = run(make_spec(budget__threshold=2.0, budget__cap=cap), engine)
    budget = outcome.report.as_json()["budget"]
    assert budget["places"] == budget["planned"] == budget["reached"] == reach
    assert "cap" not in told(outcome)


@pytest.fixture
def calibrated(tmp_path):
    """A copy of the demo's router whose calibration a test sets."""
    folder = tmp_path / "router"
    shutil.copytree(MODELS / "router", folder)

    def write(value: float, rows: int = 1000, reached: int | None = 300) -> str:
        """Calibrated for 0.3 on `rows` rows of which `reached` reached `value`."""
        path = folder / "routelmt.json"
        one = {"value": value, "reached": reached, "low": 0.25, "high": 0.35}
        whole = {"rows": rows, "traffic_rows": 9, "thresholds": {"0.30": one}, "quantiles": [0, 1]}
        path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": whole if rows else None}))
        return str(folder)

    return write


def test_a_calibrated_threshold_comes_from_the_routers_card(make_spec, tmp_path, engine, calibrated):
    spec = make_spec(router__source=calibrated(0.0, rows=0), budget__threshold="calibrated")
    with pytest.raises(UsageError, match=r"no threshold for fraction 0\.3 \(it has: none\)"):
        run(spec, engine)
    calibrated(1.5, reached=None)
    with pytest.raises(UsageError, match=r"it has: none\)\. Run `routelmt-batch calibrate`"):
        run(spec, engine)
    assert not (tmp_path / "out").exists()
    calibrated(1.5)
    assert run(spec, engine).report.as_json()["budget"]["threshold"] == 1.5
    plan = (tmp_path / "out/_job/plan/plan.json").read_bytes()
    calibrated(0.5)
    with pytest.raises(OutputError, match=r"frozen at .*budget.threshold 1\.5.*this command has"):
        run(spec, engine)
    assert (tmp_path / "out/_job/plan/plan.json").read_bytes() == plan


def test_the_report_sets_what_reached_a_calibrated_threshold_against_what_should(
    make_spec, tmp_path, engine, calibrated
):
    spec = make_spec(router__source=calibrated(-1.0), budget__threshold="calibrated")
    outcome = run(spec, engine)
    gains = [line["gain"] for line in oracle.scores(tmp_path / "out").values() if line["gain"] is not None]
    budget = outcome.report.as_json()["budget"]
    assert budget["reached"] == budget["planned"] == sum(gain >= -1 for gain in gains)
    assert budget["realised"] == budget["reached_fraction"] == budget["reached"] / 65
    assert "unfilled" not in budget
    low, high = (bound / 65 for bound in betabinom(65, 300, 701).interval(0.95))
    assert budget["calibrated"] == {"rows": 1000, "reached": 300, "low": low, "high": high}
    assert budget["realised"] > high, "the made-up scores reach -1 far more often"
    assert f"outside the expected {low:.4f} to {high:.4f} (95%)" in told(outcome)
    assert "calibrate the router on rows like these" in told(outcome)
    shown = printed(outcome)
    assert f"-1: {budget['reached']} of 65 rows with a gain reach it, {budget['realised']:.4f}" in shown
    assert f"for 0.3 on 1,000 held-out rows: {low:.4f} to {high:.4f} (95%) of rows like them" in shown
    assert "places" not in shown and "unfilled" not in shown


def test_calls_for_several_rows_are_not_set_against_single_held_out_rows(
    make_spec, tmp_path, engine, calibrated
):
    keys = {"router__source": calibrated(-1.0), "budget__threshold": "calibrated", "input__fold": "exact"}
    outcome = run(make_spec(**keys), engine)
    report = outcome.report.as_json()
    assert report["folded_rows"] == 1 and report["budget"]["reached_fraction"] > 0.5
    worth = {
        key: line["gain"] * len(oracle.calls(tmp_path / "out", tmp_path / "corpus")[key])
        for key, line in oracle.scores(tmp_path / "out").items()
        if line["gain"] is not None
    }
    assert report["budget"]["reached"] == sum(total >= -1 for total in worth.values())
    assert "outside the expected" not in told(outcome)


def test_traffic_like_the_held_out_rows_is_no_warning(make_spec, tmp_path, engine, calibrated):
    run(make_spec(), engine)
    gains = [line["gain"] for line in oracle.scores(tmp_path / "out").values() if line["gain"] is not None]
    shutil.rmtree(tmp_path / "out")
    like = calibrated(1.5, rows=65, reached=sum(gain >= 1.5 for gain in gains))
    spec = make_spec(router__source=like, budget__threshold="calibrated", budget__cap=0.1)
    outcome = run(spec, engine)
    assert "calibrate" not in told(outcome), "a cap does not change what reaches the threshold"
    assert outcome.report.as_json()["budget"]["planned"] == 6 < outcome.report.as_json()["budget"]["reached"]
    assert "0.1: 6 places" in printed(outcome)


def test_a_recalibration_changes_no_report_of_an_older_plan(make_spec, tmp_path, engine, calibrated):
    spec = make_spec(router__source=calibrated(1.5), budget__threshold="calibrated")
    before = run(spec, engine).report.as_json()["budget"]["calibrated"]
    (tmp_path / "out/_SUCCESS").unlink()
    calibrated(1.5, rows=20, reached=2)
    again = run(spec, engine)
    assert again.new and again.report.as_json()["budget"]["calibrated"] == before


def test_a_threshold_given_as_a_number_promises_no_fraction(make_spec, engine):
    outcome = run(make_spec(budget__threshold=2.0), engine)
    assert outcome.report.as_json()["budget"]["calibrated"] is None
    assert "calibrate" not in told(outcome) and "held-out rows" not in printed(outcome)
