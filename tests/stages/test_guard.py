"""The guard on a made-up engine, against a full sort: who is called, who keeps small, what it costs."""

import json
import math
import shutil
import signal
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from sacrebleu.metrics import CHRF

from routelmt_batch.errors import ModelError, OutputError, RoutelmtError, SpecError, UsageError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from routelmt_batch.tokens import load_tokenizer
from tests import oracle
from tests.conftest import COLUMNS, MODELS, sampled, write_shard
from tests.fake_engine import FakeEngine
from tests.job.test_resume import run_armed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_page")]
BARS = Bars(Console(quiet=True), quiet=True)
ROWS = 60


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path / "sent.log")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two shards. The fake models say `small of N` and `large of N`; every third reference is what the
    small one says, every fifth of the others what the large one says."""
    root = tmp_path / "corpus"
    for name, first in (("a", 0), ("b", 1000)):
        rows = range(ROWS // 2)
        references = [
            f"small of {i}" if i % 3 == 0 else f"large of {i}" if i % 5 == 0 else "xyz" for i in rows
        ]
        write_shard(
            root / f"{name}.parquet",
            [f"Sentence {first + i * i}." for i in rows],
            row_group_size=13,
            reference=pa.array(references),
        )
    return root


@pytest.fixture
def guarded(make_spec, corpus):
    def write(metric="chrf", **guard):
        return make_spec(
            input={"uri": str(corpus), "columns": COLUMNS | {"reference": "reference"}},
            guard=guard,
            metric=metric,
        )

    return write


def run(spec: Path, engine: FakeEngine, **options) -> flow.Outcome:
    return flow.run(load(spec), flow.Options(**options), BARS, engine.opened)


def output(folder: Path) -> dict[tuple[str, int], dict]:
    return {
        (path.name, index): line
        for path in sorted((folder / "data").glob("*.parquet"))
        for index, line in enumerate(pq.read_table(path).to_pylist())
    }


def by_gain(folder: Path) -> list[tuple[str, int]]:
    gains = {key: line["gain"] for key, line in oracle.scores(folder).items()}
    return sorted(gains, key=lambda key: (-gains[key], key[0].encode(), key[1]))


def chrf(route: str, key: tuple[str, int], rows: dict) -> float:
    return CHRF().sentence_score(f"{route} of {key[1]}", [rows[key]["reference"]]).score


def calls(engine: FakeEngine, label: str) -> list[tuple[str, int]]:
    lines = [line.split() for line in engine.log.read_text().splitlines()]
    return [(line[1], int(line[2])) for line in lines if line[0] == label]


@pytest.mark.parametrize("factor", [1, 1.5, 3])
def test_good_hypotheses_stay_small_and_the_next_by_gain_get_their_places(guarded, tmp_path, engine, factor):
    spec = guarded(mode="hypothesis", keep_small_above=60, candidates=factor)
    outcome = run(spec, engine)
    rows, order = output(tmp_path / "out"), by_gain(tmp_path / "out")
    k = math.floor(Decimal("0.3") * ROWS)
    candidates = order[: int(factor * k)]
    contenders = [key for key in candidates if not chrf("small", key, rows) > 60]
    called = set(contenders[:k])
    assert called != set(order[:k]) and len(called) <= k
    assert set(calls(engine, "large")) == called
    assert {key for key, row in rows.items() if row["route"] == "large"} == called
    assert {key for key, row in rows.items() if row["planned_route"] == "large"} == set(order[:k])
    kept = set(order[:k]) - called
    assert {rows[key]["reason"] for key in kept} == {"hypothesis_good"}
    assert all(rows[key]["reason"] == "freed_place" for key in called - set(order[:k]))
    assert sorted(calls(engine, "small")) == sorted(rows), "every row once, candidates among them"
    guard = outcome.report.as_json()["guard"]
    assert guard["kept_small"] == len(kept)
    assert guard["freed_places_taken"] == len(called - set(order[:k]))
    assert guard["unfilled"] == k - len(called)
    assert (guard["unfilled"] > 0) == (factor == 1)
    assert outcome.report.as_json()["status"]["ok"] == ROWS


def test_verify_keeps_the_small_translation_where_the_large_one_scores_lower(guarded, tmp_path, engine):
    run(guarded(verify=True, margin=5), engine)
    rows, order = output(tmp_path / "out"), by_gain(tmp_path / "out")
    called = set(order[:18])
    assert set(calls(engine, "large")) == called and sorted(calls(engine, "small")) == sorted(rows)
    worse = {key for key in called if chrf("large", key, rows) < chrf("small", key, rows) - 5}
    assert worse and {key for key, row in rows.items() if row["reason"] == "verified_small"} == worse
    assert {key for key, row in rows.items() if row["route"] == "large"} == called - worse
    assert all(rows[key]["status"] == "ok" for key in worse)


def test_held_back_places_go_to_the_worst_small_translations(guarded, tmp_path, engine):
    outcome = run(guarded(escalate_fraction=0.1, escalate_below=50), engine)
    rows, order = output(tmp_path / "out"), by_gain(tmp_path / "out")
    planned = set(order[:12])  # 18 places, 6 held back
    assert {key for key, row in rows.items() if row["planned_route"] == "large"} == planned
    rest = [key for key in rows if key not in planned]
    worst = sorted(
        (key for key in rest if chrf("small", key, rows) < 50),
        key=lambda key: (chrf("small", key, rows), key[0].encode(), key[1]),
    )
    assert len(worst) > 6
    assert {key for key, row in rows.items() if row["reason"] == "escalated"} == set(worst[:6])
    assert set(calls(engine, "large")) == planned | set(worst[:6])
    assert sorted(calls(engine, "small")) == sorted(rest), "planned rows cost no small call"
    assert outcome.report.as_json()["guard"]["escalated"] == 6


def test_everything_together_stays_within_the_budget_and_does_nothing_twice(guarded, tmp_path, engine):
    spec = guarded(
        mode="hypothesis", keep_small_above=60, verify=True, escalate_fraction="0.05", escalate_below=50
    )
    run(spec, engine)
    assert len(calls(engine, "large")) == len(set(calls(engine, "large"))) <= 18
    assert sorted(calls(engine, "small")) == sorted(output(tmp_path / "out"))
    before = len(engine.log.read_text())
    assert not run(spec, engine).new
    assert len(engine.log.read_text()) == before


@pytest.mark.parametrize("stop_at", ["large", "small"])
def test_a_guarded_job_that_stops_goes_on_where_it_stood(guarded, tmp_path, engine, stop_at):
    spec = guarded(
        mode="hypothesis", keep_small_above=60, verify=True, escalate_fraction="0.05", escalate_below=50
    )
    for _ in range(3):
        asked = []
        with engine.stopping(lambda label, row, asked=asked: asked.append(label) or asked.count(stop_at) > 5):
            run(spec, engine)
    run(spec, engine)
    assert len(set(calls(engine, "large"))) <= 18
    whole = output(tmp_path / "out")
    other = FakeEngine(tmp_path / "other.log")
    settings = (f"output.uri={tmp_path / 'other'}",)
    flow.run(load(spec, settings), flow.Options(), BARS, other.opened)
    assert output(tmp_path / "other") == whole


def test_large_failures_fall_back_and_cost_no_second_small_call(guarded, tmp_path, engine):
    engine.fails = lambda label, row: "engine_error" if label == "large" and row["row"] % 2 else ""
    run(guarded(mode="hypothesis", keep_small_above=101, verify=True), engine)
    rows = output(tmp_path / "out")
    odd = {key for key, row in rows.items() if row["planned_route"] == "large" and key[1] % 2}
    assert odd and {key for key, row in rows.items() if row["status"] == "fallback"} == odd
    assert sorted(calls(engine, "small")) == sorted(rows)


def test_another_guard_after_translations_is_refused(guarded, engine):
    run(guarded(verify=True), engine)
    with pytest.raises(OutputError, match="another guard"):
        run(guarded(verify=True, margin=3), engine)


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({"mode": "hypothesis"}, "mode: hypothesis needs keep_small_above"),
        ({"mode": "predicted", "keep_small_above": 1}, "mode: predicted needs router"),
        ({"mode": "maybe"}, "mode"),
        ({"escalate_fraction": 0.4}, r"escalate_fraction 0\.4 is more than the budget 0\.3"),
        ({"escalate_below": 3}, "escalate_below needs escalate_fraction"),
    ],
)
def test_a_guard_that_makes_no_sense_is_refused(guarded, guard, message):
    with pytest.raises(SpecError, match=message):
        load(guarded(**guard))


def test_a_metric_with_references_needs_their_column(make_spec, engine):
    with pytest.raises(UsageError, match=r"needs references.*input\.columns\.reference"):
        run(make_spec(guard={"verify": True}, metric="chrf"), engine)


def test_the_guards_record_is_whole_or_not_there(guarded, tmp_path, engine):
    run(guarded(mode="hypothesis", keep_small_above=60), engine)
    lines = oracle.log(tmp_path / "out")
    (event,) = [line for line in lines if line.get("event") == "guard"]
    assert event["step"] == "route" and event["parts"]
    decisions = pa.concat_tables(
        pq.read_table(tmp_path / "out/_job/guard" / part["part"]) for part in event["parts"]
    )
    assert decisions["call"].to_pylist().count("small") == event["to_small"]


STAGES = ("checks", "quality", "guard", "audit", "audit_translations", "audit_quality")
KILLS = [f"{stage}.{step}" for stage in STAGES for step in ("write", "publish.after")] + [
    f"{place}.ledger.{side}" for place in STAGES for side in ("before", "after")
]
EVERYTHING = {
    "mode": "hypothesis",
    "keep_small_above": 60,
    "verify": True,
    "escalate_fraction": "0.05",
    "escalate_below": 50,
}


@pytest.fixture(scope="module")
def undisturbed():
    """The rows of a guarded job that nothing stops, made once."""
    return {}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("failpoint", sampled(KILLS, every=2))
def test_killed_at_a_guards_commit_it_goes_on(guarded, tmp_path, engine, undisturbed, failpoint):
    audit = {"fraction": "0.2", "min_rows": 1}
    spec = make_audited(guarded, audit)
    for name in ("small", "large", "router"):
        load_tokenizer(str(MODELS / name))
    if not undisturbed:
        whole = load(spec, (f"output.uri={tmp_path / 'whole'}",))
        flow.run(whole, flow.Options(), BARS, FakeEngine(tmp_path / "whole.log").opened)
        undisturbed.update(output(tmp_path / "whole"))
    assert run_armed(spec, engine.log, f"{failpoint}:1") == -signal.SIGKILL, "it is on the way"
    before = oracle.digests(tmp_path / "out")
    run(spec, engine)
    after = oracle.digests(tmp_path / "out")
    assert {path: after[path] for path in before} == before, "committed parts stay byte-identical"
    assert output(tmp_path / "out") == undisturbed
    assert not list((tmp_path / "out").rglob("*tmp")) and not list((tmp_path / "out").rglob("*.arrow"))
    for folder in ("guard", "audit"):
        assert {path.name for path in (tmp_path / "out/_job" / folder).iterdir()} == together(
            tmp_path / "out", folder
        )


def together(folder: Path, stage: str) -> set[str]:
    """Names of parts that an event committed."""
    lines = oracle.log(folder)
    return {part["part"] for line in lines for part in line.get("parts", ()) if part["stage"] == stage}


def make_audited(guarded, audit) -> Path:
    path = guarded(**EVERYTHING)
    spec = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(spec | {"audit": audit}))
    return path


def quality_router(tmp_path: Path) -> Path:
    folder = tmp_path / "router-q"
    shutil.copytree(MODELS / "router", folder)
    card = json.loads((folder / "routelmt.json").read_text())
    card |= {"kind": "routelmt-q", "target": "quality", "scale": {"mean": 50.0, "std": 10.0}}
    (folder / "routelmt.json").write_text(json.dumps(card))
    return folder


def test_predicted_quality_decides_without_a_translation(guarded, tmp_path, engine):
    pool = {"source": str(quality_router(tmp_path)), "max_model_len_tokens": 256}
    outcome = run(guarded(metric=None, mode="predicted", keep_small_above=60, router=pool), engine)
    rows, order = output(tmp_path / "out"), by_gain(tmp_path / "out")
    asked = calls(engine, "quality-router")
    candidates = order[:36]
    assert sorted(asked) == sorted(candidates), "the prompts of the candidates, and no others"
    # The made-up engine scores every prompt alike for both routers: -3 to 3.
    scored = oracle.scores(tmp_path / "out")
    scale = json.loads((MODELS / "router/routelmt.json").read_text())["scale"]
    quality = {
        key: 50 + 10 * round((scored[key]["gain"] - scale["mean"]) / scale["std"]) for key in candidates
    }
    called = [key for key in candidates if not quality[key] > 60][:18]
    assert set(calls(engine, "large")) == set(called)
    assert {rows[key]["reason"] for key in order[:18] if key not in called} == {"predicted_good"}
    assert sorted(calls(engine, "small")) == sorted(set(rows) - set(called)), "no hypothesis is decoded"
    assert outcome.report.as_json()["guard"]["extra_small_translations"] == 0


def test_another_budget_after_a_guards_decision_is_refused(guarded, tmp_path, engine):
    """Or the places of an old plan would add to those of the new one."""
    pool = {"source": str(quality_router(tmp_path)), "max_model_len_tokens": 256}
    spec = guarded(metric=None, mode="predicted", keep_small_above=60, router=pool)
    with engine.stopping(lambda label, row: label in ("small", "large")):
        run(spec, engine)
    with pytest.raises(OutputError, match=r"frozen at budget.fraction 0\.3"):
        flow.run(load(spec, ("budget.fraction=0.1",)), flow.Options(), BARS, engine.opened)
    other = ("guard.router.threads=1",)
    flow.run(load(spec, other), flow.Options(), BARS, engine.opened)
    assert len(set(calls(engine, "large"))) <= 18


def test_small_failures_that_the_large_model_mends_end_no_job(guarded, tmp_path, engine):
    engine.fails = lambda label, row: "engine_error" if label == "small" and row["row"] % 7 == 0 else ""
    spec = guarded(escalate_fraction=0.25)
    assert run(spec, engine).report.as_json()["status"]["failed"] == 0
    rows = output(tmp_path / "out")
    failed = {key for key, row in rows.items() if key[1] % 7 == 0 and row["planned_route"] == "small"}
    assert failed and {key for key, row in rows.items() if row["reason"] == "escalated"} >= failed
    assert all(rows[key]["route"] == "large" for key in failed)


def test_too_many_failures_under_a_guard_end_the_job_and_a_retry_mends_it(guarded, tmp_path, engine):
    spec = guarded(mode="hypothesis", keep_small_above=60, verify=True)
    engine.fails = lambda label, row: "engine_error" if label != "router" and row["row"] % 2 else ""
    for _ in range(2):
        with pytest.raises(RoutelmtError, match="max_failed_fraction"):
            run(spec, engine)
    engine.fails = lambda label, row: ""
    before = len(calls(engine, "small"))
    assert run(spec, engine, retry_failed=True).report.as_json()["status"]["failed"] == 0
    rows = output(tmp_path / "out")
    assert len(set(calls(engine, "large"))) <= 18
    again = calls(engine, "small")[before:]
    large = [key for key in again if rows[key]["route"] == "large"]
    assert again and len(set(again)) == len(again)
    worse = [key for key in large if chrf("large", key, rows) < chrf("small", key, rows)]
    assert not worse, "what was retried is verified, too"


def test_a_router_of_another_small_model_is_no_guard(guarded, tmp_path, engine):
    pool = {"source": str(MODELS / "router"), "max_model_len_tokens": 256}
    with pytest.raises(ModelError, match="router.kind is routelmt-q"):
        run(guarded(metric=None, mode="predicted", keep_small_above=60, router=pool), engine)


def test_rows_without_a_quality_are_counted_and_told(guarded, corpus, tmp_path, engine):
    for path in corpus.glob("*.parquet"):
        table = pq.read_table(path)
        at = table.schema.get_field_index("reference")
        pq.write_table(table.set_column(at, "reference", pa.nulls(table.num_rows, pa.string())), path)
    outcome = run(guarded(mode="hypothesis", keep_small_above=60, verify=True), engine)
    rows, order = output(tmp_path / "out"), by_gain(tmp_path / "out")
    assert {key for key, row in rows.items() if row["route"] == "large"} == set(order[:18]), "as planned"
    guard = outcome.report.as_json()["guard"]
    # 36 candidates; of the 18 that are called, large.
    assert guard["unknown"] == {"small": 36, "large": 18, "predicted": 0} == guard["measured"]
    assert any("54 of 54 translations" in told for told in outcome.report.as_json()["warnings"])


@pytest.mark.parametrize(("fraction", "large"), [("0", 0), ("1", ROWS)])
def test_a_guard_of_no_budget_and_of_all_of_it(guarded, tmp_path, engine, fraction, large):
    spec = load(
        guarded(mode="hypothesis", keep_small_above=60, verify=True), (f"budget.fraction={fraction}",)
    )
    outcome = flow.run(spec, flow.Options(), BARS, engine.opened)
    rows = output(tmp_path / "out")
    good = {key for key in rows if chrf("small", key, rows) > 60} if large else set()
    assert set(calls(engine, "large")) == (set(rows) - good if large else set())
    assert outcome.report.as_json()["guard"]["kept_small"] == len(good)
    assert outcome.report.as_json()["guard"]["unfilled"] == len(good)


def test_under_a_threshold_with_a_cap_freed_places_go_to_rows_that_reach_it(guarded, tmp_path, engine):
    spec = load(
        guarded(mode="hypothesis", keep_small_above=60, candidates=3),
        ("budget.threshold=1.0", "budget.cap=0.2"),
    )
    flow.run(spec, flow.Options(), BARS, engine.opened)
    rows, order = output(tmp_path / "out"), by_gain(tmp_path / "out")
    gains = {key: line["gain"] for key, line in oracle.scores(tmp_path / "out").items()}
    candidates = [key for key in order if gains[key] >= 1.0][:36]
    assert 12 < len(candidates) < 36, "the threshold leaves some out"
    contenders = [key for key in candidates if not chrf("small", key, rows) > 60]
    assert set(calls(engine, "large")) == set(contenders[:12])


def test_a_cap_says_how_many_of_its_places_wait_for_escalation(guarded, tmp_path, engine):
    spec = load(guarded(escalate_fraction="0.1"), ("budget.threshold=-3.0", "budget.cap=0.3"))
    told = " ".join(flow.run(spec, flow.Options(), BARS, engine.opened).report.as_json()["warnings"])
    over = sum(line["gain"] >= -3.0 for line in oracle.scores(tmp_path / "out").values()) - 12
    assert f"cap of 18 rows (6 of them kept for escalation) was reached; {over} rows over" in told


def test_an_escalated_row_that_the_large_model_fails_on_starts_no_engine_for_nothing(guarded, engine):
    engine.fails = lambda label, row: "engine_error" if label == "large" and row["row"] % 2 else ""
    spec = guarded(escalate_fraction=0.1, escalate_below=101)
    assert run(spec, engine).report.as_json()["status"]["failed"] == 0
    passes = [lanes for lanes in engine.lanes_together if lanes in (["small"], ["large"])]
    assert passes == [["small"], ["large"], ["small"]], "the last one for what large failed on"
    mended = calls(engine, "small")[-1:]
    engine.fails = lambda label, row: ""
    assert mended and not run(spec, engine).new
