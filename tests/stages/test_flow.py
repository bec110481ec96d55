"""The whole flow on a made-up engine: contracts, budgets, failures, retries."""

import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from routelmt_batch.errors import InputChanged, InputError, OutputError, RoutelmtError, UsageError
from routelmt_batch.job import flow
from routelmt_batch.progress import Bars
from routelmt_batch.spec.file import load
from tests import oracle
from tests.conftest import MODELS, write_shard
from tests.fake_engine import FakeEngine

pytestmark = pytest.mark.usefixtures("no_page")
BARS = Bars(Console(quiet=True), quiet=True)


def run(spec: Path, engine: FakeEngine, settings: tuple[str, ...] = (), **options) -> flow.Outcome:
    return flow.run(load(spec, settings), flow.Options(**options), BARS, engine.opened)


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path / "sent.log")


def sent(engine: FakeEngine) -> list[str]:
    return engine.log.read_text().splitlines() if engine.log.exists() else []


class LosesReceipts(FakeEngine):
    """The first part of each lane has two receipts, and one of them is lost with its actor."""

    def __init__(self, log: Path, ever: bool = True) -> None:
        super().__init__(log)
        self.lost: list[tuple[str, str]] = []
        self._ever = ever

    def run(self, lanes, tell=print):
        for receipt in super().run(lanes, tell):
            first = receipt.lane not in {label for label, _ in self.lost}
            if first or not self._ever:
                self.lost.append((receipt.lane, receipt.part.part))
                yield replace(receipt, of=2)
            else:
                yield receipt


def test_a_part_with_a_lost_receipt_does_not_count_and_its_rows_come_back(make_spec, corpus, tmp_path):
    engine = LosesReceipts(tmp_path / "sent.log")
    run(make_spec(), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")
    lines = Counter(sent(engine))
    again = [line for line, times in lines.items() if times > 1]
    assert len(engine.lost) >= 3 and again, "score, large and small lost a part each"
    named = {line.get("part") for line in oracle.log(tmp_path / "out")}
    assert named.isdisjoint(part for _, part in engine.lost)


def test_rows_that_never_come_back_end_the_job(make_spec, tmp_path):
    engine = LosesReceipts(tmp_path / "sent.log", ever=False)
    with pytest.raises(RoutelmtError, match="71 rows came back from no engine, twice"):
        run(make_spec(), engine)


@pytest.mark.parametrize("fraction", ["0", "0.29", "0.3", "0.5", "1", "0.0154"])
def test_every_row_comes_back_once_and_the_plan_is_the_top_of_a_sort(
    make_spec, corpus, tmp_path, engine, fraction
):
    outcome = run(make_spec(budget__fraction=fraction), engine)
    rows = oracle.check(tmp_path / "out", corpus, fraction)
    assert outcome.report.exit_code == 0
    assert outcome.report.as_json()["rows"] == len(rows) == 71
    assert outcome.report.as_json()["status"]["skipped"] == 6
    labels = {line.split()[0] for line in sent(engine)}
    assert labels == {"router"} | ({"small"} if fraction != "1" else set()) | (
        {"large"} if fraction != "0" else set()
    )


def test_codes_that_are_spelled_otherwise_give_the_same_translations(make_spec, corpus, tmp_path, engine):
    """`zho_Hans` is `zh` for the prompt, the router, the checks and the report; the column stays as it was."""
    texts = [f"I saw {i}." for i in range(30)]
    outputs = []
    for source, target in (("en", "zh"), ("EN", "zho_Hans")):
        columns = {"from": pa.array([source] * 30), "to": pa.array([target] * 30)}
        shutil.rmtree(corpus)
        write_shard(corpus / "a.parquet", texts, **columns)
        out = tmp_path / target
        report = run(make_spec(output__uri=str(out)), engine).report.as_json()
        outputs.append((pq.read_table(out / "data/a.parquet").drop(["from", "to"]), report["direction"]))
        assert pq.read_table(out / "data/a.parquet")["to"].to_pylist() == [target] * 30
    assert outputs[0] == outputs[1]
    assert report["codes"] == {"spelled": {"en": {"EN": 30}, "zh": {"zho_Hans": 30}}, "unknown": {}}


def test_a_job_that_skips_most_rows_ends_before_it_translates_and_goes_on_if_that_is_allowed(
    make_spec, corpus, tmp_path, engine
):
    shutil.rmtree(corpus)
    write_shard(corpus / "a.parquet", ["", None, " ", "far too long " * 200, "A cat.", "A dog."])
    with pytest.raises(InputError, match="4 of 6 rows are skipped, .*: 2 empty, 1 null, 1 too_long"):
        run(make_spec(), engine)
    assert {line.split()[0] for line in sent(engine)} == {"router"}
    assert not (tmp_path / "out/_SUCCESS").exists()
    outcome = run(make_spec(run__max_skipped_fraction="0.7"), engine)
    assert outcome.report.as_json()["status"]["skipped"] == 4
    assert sum(line.startswith("router") for line in sent(engine)) == 6, "no row is scored twice"


def test_pools_side_by_side_make_one_pass(make_spec, corpus, tmp_path, engine):
    engine.room = True
    run(make_spec(), engine)
    assert engine.lanes_together == [["router"], ["large", "small"], ["check small", "check large"]]
    assert engine.started_ahead == [["large", "small"]], "towards the end of scoring"
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_the_spec_can_force_the_order(make_spec, engine):
    engine.room = True
    run(make_spec(run__pools="sequential"), engine)
    assert engine.lanes_together == [["router"], ["large"], ["small"], ["check small", "check large"]]
    assert engine.started_ahead == [["large"]]


def test_pools_that_a_cluster_has_no_room_for_run_one_after_the_other(make_spec, engine):
    """It would wait for ever; see Pools.check_fit for the message of each pool that does not fit alone."""
    engine.room_for = 1
    said = io.StringIO()
    spec = load(make_spec(run__pools="concurrent"))
    flow.run(spec, flow.Options(), Bars(Console(file=said, width=200)), engine.opened)
    assert engine.lanes_together[1:3] == [["large"], ["small"]]
    assert said.getvalue().count("they run one after the other") == 1
    engine.lanes_together.clear()
    engine.room_for = 2
    flow.run(
        load(make_spec(run__pools="concurrent"), output_uri=f"{spec.output.uri}-2"),
        flow.Options(),
        BARS,
        engine.opened,
    )
    assert engine.lanes_together[1] == ["large", "small"]


def test_an_output_that_cannot_be_written_is_told_before_anything_starts(make_spec, engine):
    """By dry runs, too; where nobody, not even root, can write."""
    spec = load(make_spec(), output_uri="/proc/self/out")
    for begin in (
        lambda: flow.run(spec, flow.Options(), BARS, engine.opened),
        lambda: flow.dry_run(spec, None, None, BARS),
    ):
        with pytest.raises(OutputError, match=r"output.uri /proc/self/out: cannot write to /proc/\d+"):
            begin()


@pytest.mark.parametrize("together", [False, True])
def test_what_the_large_model_fails_on_the_small_one_translates(
    make_spec, corpus, tmp_path, engine, together
):
    engine.room = together
    engine.fails = lambda label, row: "engine_error" if label == "large" and row["row"] % 2 else ""
    outcome = run(make_spec(), engine)
    rows = oracle.check(tmp_path / "out", corpus, "0.3")
    odd = {key for key, row in rows.items() if row["planned_route"] == "large" and key[1] % 2}
    assert odd and {key for key, row in rows.items() if row["status"] == "fallback"} == odd
    assert {rows[key]["route"] for key in odd} == {"small"}
    assert outcome.report.exit_code == 0


def test_failed_rows_are_told_and_retried_alone(make_spec, corpus, tmp_path, engine):
    spec = make_spec(run__max_failed_fraction=0.5)
    engine.fails = lambda label, row: "empty_output" if label != "router" and row["row"] % 5 == 0 else ""
    outcome = run(spec, engine)
    rows = oracle.check(tmp_path / "out", corpus, "0.3")
    failed = {key for key, row in rows.items() if row["status"] == "failed"}
    assert failed and {rows[key]["reason"] for key in failed} == {"empty_output"}
    assert outcome.report.exit_code == 3
    before = len(sent(engine))
    assert not run(spec, engine).new
    assert len(sent(engine)) == before, "a finished job sends nothing"
    engine.fails = lambda label, row: ""
    again = run(spec, engine, retry_failed=True)
    retried = {(line.split()[1], int(line.split()[2])) for line in sent(engine)[before:]}
    assert retried == failed
    assert again.report.as_json()["status"]["failed"] == 0 and again.report.exit_code == 0
    after = oracle.check(tmp_path / "out", corpus, "0.3")
    assert {key: after[key] for key in rows if key not in failed} == {
        key: rows[key] for key in rows if key not in failed
    }
    assert all(after[key]["route"] == after[key]["planned_route"] for key in failed)


def test_too_many_failures_end_the_job_and_a_retry_mends_it(make_spec, corpus, tmp_path, engine):
    spec = make_spec()
    engine.fails = lambda label, row: "engine_error" if label != "router" else ""
    with pytest.raises(RoutelmtError, match="max_failed_fraction 0.01"):
        run(spec, engine)
    with pytest.raises(RoutelmtError, match="max_failed_fraction"):
        run(spec, engine)
    engine.fails = lambda label, row: ""
    assert run(spec, engine, retry_failed=True).report.as_json()["status"]["failed"] == 0
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_row_the_router_fails_on_goes_to_the_small_model(make_spec, tmp_path, engine):
    engine.fails = lambda label, row: "engine_error" if label == "router" and row["row"] == 0 else ""
    outcome = run(make_spec(run__max_failed_fraction=0.1), engine)
    row = pq.read_table(tmp_path / "out/data/b-one.parquet").to_pylist()[0]
    assert (row["status"], row["reason"], row["predicted_gain"], row["route"]) == (
        "ok",
        "no_gain",
        None,
        "small",
    )
    assert outcome.report.as_json()["budget"]["rows_with_gain"] == 71 - 6 - 3


def test_a_row_that_kills_engines_is_quarantined_and_tried_again_on_request(
    make_spec, corpus, tmp_path, engine
):
    """Killed by the router: no gain. By the large model: a fallback. By both: quarantined, told, reopened."""
    spec = make_spec(run__max_failed_fraction=0.1)
    deadly = {("router", 0), ("large", 1), ("large", 2), ("small", 1), ("small", 7)}
    engine.fails = lambda label, row: "engine_killed" if (label, row["row"]) in deadly else ""
    said = io.StringIO()
    bars = Bars(Console(file=said, width=200))
    outcome = flow.run(load(spec, ["budget.fraction=0.9"]), flow.Options(), bars, engine.opened)
    rows = oracle.check(tmp_path / "out", corpus, "0.9")
    large = {key for key, row in rows.items() if row["planned_route"] == "large"}
    dead = {key for key, row in rows.items() if row["status"] == "quarantined"}
    assert dead == {key for key in rows if key[1] == 1 or (key[1] == 7 and key not in large)} and dead
    assert {rows[key]["reason"] for key in dead} == {"engine_killed"}
    fallback = {key for key, row in rows.items() if row["status"] == "fallback"}
    assert fallback == {key for key in large if key[1] == 2} and fallback
    assert {rows[key]["reason"] for key in rows if key[1] == 0} == {"no_gain"}
    assert outcome.report.as_json()["status"]["quarantined"] == len(dead) and outcome.report.exit_code == 3
    assert "killed the engine: engine_killed" in said.getvalue()
    engine.fails = lambda label, row: ""
    before = len(sent(engine))
    again = flow.run(
        load(spec, ["budget.fraction=0.9"]), flow.Options(retry_failed=True), BARS, engine.opened
    )
    assert {(line.split()[1], int(line.split()[2])) for line in sent(engine)[before:]} == dead
    assert again.report.as_json()["status"]["quarantined"] == 0 and again.report.exit_code == 0
    oracle.check(tmp_path / "out", corpus, "0.9")


def test_rows_that_kill_both_models_on_every_try_are_counted_once(make_spec, corpus, tmp_path, engine):
    """Six of 71, each found four times: by both models, and by both again."""
    spec = make_spec(run__max_failed_fraction=0.1)
    deadly = set(range(10, 16))
    engine.fails = lambda label, row: (
        "engine_killed"
        if label != "router" and (row["shard"], row["row"]) in {("a.parquet", at) for at in deadly}
        else ""
    )
    for retry in (False, True, True):
        options = flow.Options(retry_failed=retry)
        outcome = flow.run(load(spec, ["budget.fraction=0.9"]), options, BARS, engine.opened)
        assert outcome.report.as_json()["status"]["quarantined"] == 6 and outcome.report.exit_code == 3
        oracle.check(tmp_path / "out", corpus, "0.9")


def test_a_job_is_not_spent_on_looking_for_rows_that_kill_the_large_model(make_spec, engine):
    engine.fails = lambda label, row: "engine_killed" if label == "large" else ""
    with pytest.raises(RoutelmtError, match=r"an engine died of \d+ of 71 rows"):
        run(make_spec(), engine)


def test_a_router_that_fails_on_all_rows_ends_the_job_and_leaves_no_scores(
    make_spec, corpus, tmp_path, engine
):
    engine.fails = lambda label, row: "engine_error" if label == "router" else ""
    with pytest.raises(RoutelmtError, match=r"the router gave no gain for \d+ of 71 rows"):
        run(make_spec(), engine)
    assert not any(line["reason"] == "engine_error" for line in oracle.scores(tmp_path / "out").values())
    engine.fails = lambda label, row: ""
    run(make_spec(), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")


@pytest.mark.parametrize("gain", [float("inf"), float("-inf"), float("nan")])
def test_gains_that_are_no_ordinary_numbers(make_spec, corpus, tmp_path, engine, monkeypatch, gain):
    from tests import fake_engine

    usual = fake_engine.gain_of
    monkeypatch.setattr(
        fake_engine,
        "gain_of",
        lambda line: gain if line["row"] % 9 == 0 else -gain if line["row"] == 10 else usual(line),
    )
    run(make_spec(run__max_failed_fraction=0.5), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")
    text = (tmp_path / "out/reports/job.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert ("not_a_number" in {line["reason"] for line in oracle.scores(tmp_path / "out").values()}) == (
        gain != gain
    )


def test_a_refused_budget_leaves_the_record_as_it_is(make_spec, tmp_path, engine):
    run(make_spec(), engine)
    work = tmp_path / "out/_job"
    names = ("spec.yaml", "manifest.json", "plan/plan.json", *map(str, (work / "log").iterdir()))
    before = {name: (work / name).read_bytes() for name in names}
    with pytest.raises(OutputError):
        run(make_spec(budget__fraction=0.4), engine)
    run(make_spec(), engine)
    assert {name: (work / name).read_bytes() for name in names} == before


def test_the_settings_that_a_job_goes_on_with_are_on_record(make_spec, tmp_path, engine):
    """Of one that is finished, the page's alone."""
    kept = tmp_path / "out/_job/spec.yaml"
    flow.plan(load(make_spec()), flow.Options(), BARS, engine.opened)
    run(make_spec(page={"rows": 3}, models__small__replicas=2), engine)
    assert (load(kept).page.rows, load(kept).models.small.replicas.max) == (3, 2)
    (tmp_path / "out/_SUCCESS").unlink()
    run(make_spec(page={"rows": 2}, models__small__replicas=3), engine)
    assert (load(kept).page.rows, load(kept).models.small.replicas.max) == (2, 3)
    assert not run(make_spec(page={"rows": 0}, models__small__replicas=4), engine).new
    assert (load(kept).page.rows, load(kept).models.small.replicas.max) == (0, 3)


def test_a_finished_job_without_translations_keeps_its_budget_too(make_spec, corpus, tmp_path, engine):
    for path in corpus.rglob("*.parquet"):
        write_shard(path, ["", None])
    run(make_spec(run__max_skipped_fraction=1), engine)
    with pytest.raises(OutputError, match="frozen at"):
        run(make_spec(budget__fraction=0.9), engine)
    assert not run(make_spec(), engine).new


def test_models_may_change_until_the_first_translation_and_not_after(make_spec, corpus, tmp_path, engine):
    flow.plan(load(make_spec()), flow.Options(), BARS, engine.opened)
    changed = ("models.large.dtype=float16",)
    with engine.stopping(lambda label, row: label == "small"):
        run(make_spec(), engine, changed)
    with pytest.raises(OutputError, match=r"models\.large\.dtype: was 'float16', is '"):
        run(make_spec(), engine)
    run(make_spec(), engine, changed)
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_two_starts_of_a_new_job_cannot_both_have_it(make_spec, corpus, tmp_path, engine, monkeypatch):
    from routelmt_batch.store import workspace

    usual = workspace.find_input

    def slow(*args):
        monkeypatch.setattr(workspace, "find_input", usual)
        flow.plan(load(make_spec()), flow.Options(), BARS, engine.opened)  # another start is quicker
        return usual(*args)

    monkeypatch.setattr(workspace, "find_input", slow)
    with pytest.raises(OutputError, match="another run began this job a moment ago"):
        run(make_spec(), engine)
    run(make_spec(), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_columns_may_be_mended_before_the_first_score(make_spec, corpus, tmp_path, engine):
    engine.fails = lambda label, row: "engine_error"
    with pytest.raises(RoutelmtError):
        run(make_spec(run__part_rows=100), engine)
    engine.fails = lambda label, row: ""
    with pytest.raises(InputError, match="column 'id' .* is int64, not string"):
        run(make_spec(input__columns__source="id"), engine)


def test_a_limit_makes_up_for_a_shard_that_cannot_be_read(make_spec, corpus, tmp_path, engine):
    rotten = bytearray((corpus / "a.parquet").read_bytes())
    rotten[40:400] = b"\x99" * 360
    (corpus / "a.parquet").write_bytes(rotten)
    report = run(make_spec(), engine, limit=10).report.as_json()
    assert set(report["unreadable"]) == {"a.parquet"} and report["rows"] == 10
    (corpus / "a.parquet").unlink()
    (tmp_path / "out/_SUCCESS").unlink()
    again = run(make_spec(), engine, limit=10).report
    assert set(again.unreadable) == {"a.parquet"}, "the loss stays on record"


def test_a_lost_plan_is_made_again_for_its_budget_alone(make_spec, corpus, tmp_path, engine):
    run(make_spec(), engine)
    plan = json.loads((tmp_path / "out/_job/plan/plan.json").read_text())
    (tmp_path / "out/_job/plan/plan.json").unlink()
    (tmp_path / "out/_SUCCESS").unlink()
    with pytest.raises(OutputError, match="frozen at"):
        run(make_spec(budget__fraction=0.4), engine)
    run(make_spec(), engine)
    again = json.loads((tmp_path / "out/_job/plan/plan.json").read_text())
    assert again.pop("epoch") > plan.pop("epoch") and again == plan
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_router_with_another_scale_does_not_go_on(make_spec, tmp_path, engine):
    router = tmp_path / "router"
    shutil.copytree(MODELS / "router", router)
    spec = make_spec(router__source=str(router))
    flow.plan(load(spec), flow.Options(), BARS, engine.opened)
    card = json.loads((router / "routelmt.json").read_text())
    (router / "routelmt.json").write_text(json.dumps({**card, "scale": {"mean": 0, "std": 1}}))
    with pytest.raises(OutputError, match="router's scale: was"):
        run(spec, engine)


def test_text_that_is_not_utf8_makes_its_shard_unreadable_and_named(make_spec, corpus, tmp_path, engine):
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe")]
    )
    write_shard(corpus / "latin.parquet", ["x"], text=bad)
    outcome = run(make_spec(), engine)
    assert "UTF8" in outcome.report.as_json()["unreadable"]["latin.parquet"]
    (corpus / "latin.parquet").unlink()
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_mended_shard_is_sent_to_a_job_of_its_own(make_spec, corpus, engine):
    whole = (corpus / "a.parquet").read_bytes()
    (corpus / "broken.parquet").write_bytes(whole[:-200])
    run(make_spec(), engine)
    (corpus / "broken.parquet").write_bytes(whole)
    with pytest.raises(InputChanged, match="could not be read when this job began.*--shards broken.parquet "):
        run(make_spec(), engine)


def test_nothing_readable_is_an_error(make_spec, corpus, engine):
    for path in corpus.rglob("*.parquet"):
        path.write_bytes(b"rubbish")
    with pytest.raises(InputError, match="none of 4 shards can be read"):
        run(make_spec(), engine)


def test_an_output_inside_the_input_is_refused(make_spec, corpus, engine):
    with pytest.raises(OutputError, match="lies inside input.uri"):
        run(make_spec(output__uri=str(corpus / "out")), engine)


def test_an_output_inside_the_input_where_no_shard_is_looked_for_is_none_of_it(make_spec, corpus, engine):
    run(make_spec(output__uri=str(corpus / "_runs" / "out")), engine)
    assert run(make_spec(output__uri=str(corpus / "_runs" / "out")), engine).report.as_json()["rows"] == 71


def test_a_touched_shard_is_the_same_shard(make_spec, corpus, tmp_path, engine):
    flow.plan(load(make_spec()), flow.Options(), BARS, engine.opened)
    (corpus / "a.parquet").touch()
    run(make_spec(), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_large_row_groups_come_back_in_bounded_ones(make_spec, corpus, tmp_path, engine, monkeypatch):
    monkeypatch.setattr("routelmt_batch.corpus.units.READ_ROWS", 4)
    monkeypatch.setattr("routelmt_batch.stages.outputs.UNIT_ROWS", 8)
    run(make_spec(), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")
    groups = pq.read_metadata(tmp_path / "out/data/a.parquet")
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [8, 8, 1, 8, 8, 1, 8, 8]


def test_min_gain_leaves_places_and_says_so(make_spec, tmp_path, engine):
    outcome = run(make_spec(budget__fraction=1, budget__min_gain=2), engine)
    budget = outcome.report.as_json()["budget"]
    gains = [line["gain"] for line in oracle.scores(tmp_path / "out").values() if line["gain"] is not None]
    assert budget["planned"] == sum(gain >= 2 for gain in gains) > 0
    assert budget["places"] == 65 and budget["unfilled"] == 65 - budget["planned"]


def test_a_cut_off_translation_is_ok_and_says_truncated(make_spec, tmp_path, engine, monkeypatch):
    monkeypatch.setattr("tests.fake_engine.TRUNCATED", True)
    run(make_spec(), engine)
    row = pq.read_table(tmp_path / "out/data/b-one.parquet").to_pylist()[0]
    assert (row["status"], row["reason"]) == ("ok", "truncated")


def test_limit_and_shards_take_a_part_of_the_input(make_spec, tmp_path, engine):
    outcome = run(make_spec(), engine, limit=20, shards="a*")
    assert outcome.report.as_json()["rows"] == 20
    assert pq.read_table(tmp_path / "out/data/a.parquet")["id"].to_pylist() == list(range(20))
    with pytest.raises(OutputError, match="--limit: was 20, is None"):
        run(make_spec(), engine, shards="a*")
    with pytest.raises(InputChanged, match="b-one.parquet: not there before"):
        run(make_spec(), engine)


def test_pass_through_columns_keep_their_types(make_spec, corpus, tmp_path, engine):
    columns = {
        "when": pa.array([0], pa.timestamp("us", tz="Asia/Kolkata")),
        "tags": pa.array([["x", None]], pa.list_(pa.string())),
        "inner": pa.array([{"a": 1, "b": [1.5]}]),
        "price": pa.array(["1.25"]).cast(pa.decimal128(10, 2)),
        "raw": pa.array([b"\x00\xff"]),
        "kind": pa.array(["k"]).dictionary_encode(),
    }
    write_shard(corpus / "b-one.parquet", ["Only this."], **columns)
    run(make_spec(), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_broken_shard_is_named_and_the_others_go_on(make_spec, corpus, tmp_path, engine):
    whole = (corpus / "a.parquet").read_bytes()
    (corpus / "broken.parquet").write_bytes(whole[:-200])
    flipped = bytearray(whole)
    flipped[40:400] = b"\x99" * 360
    (corpus / "rotten.parquet").write_bytes(flipped)
    outcome = run(make_spec(), engine)
    assert set(outcome.report.as_json()["unreadable"]) == {"broken.parquet", "rotten.parquet"}
    assert outcome.report.exit_code == 3
    assert not (tmp_path / "out/data/broken.parquet").exists()
    for name in ("broken.parquet", "rotten.parquet"):
        (corpus / name).unlink()
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_shard_that_changes_before_it_is_assembled_is_named(
    make_spec, corpus, tmp_path, engine, monkeypatch
):
    def check(*args):
        from routelmt_batch.stages.check import check

        check(*args)
        write_shard(corpus / "b-one.parquet", ["Another text."])

    monkeypatch.setattr(flow, "check_texts", check)
    with pytest.raises(InputChanged, match=r"b-one\.parquet: the shard changed"):
        run(make_spec(), engine)
    assert (tmp_path / "out/data/a.parquet").exists(), "the others are written"
    assert not (tmp_path / "out/data/b-one.parquet").exists()
    monkeypatch.undo()
    with pytest.raises(InputChanged, match=r"b-one\.parquet: changed"):
        run(make_spec(), engine)
    write_shard(corpus / "b-one.parquet", ["Only this."])
    run(make_spec(), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_another_budget_after_translations_is_refused(make_spec, engine):
    run(make_spec(), engine)
    with pytest.raises(
        OutputError, match=r"frozen at budget.fraction 0\.3.*this command has budget.fraction 0\.4"
    ):
        run(make_spec(budget__fraction=0.4), engine)


def test_another_prompt_or_model_is_refused_and_named(make_spec, engine, tmp_path):
    run(make_spec(), engine)
    with pytest.raises(OutputError, match=r"models\.large\.max_output_tokens: was 64, is 32"):
        run(
            make_spec(),
            engine,
            ("models.large.max_output_tokens=32", "models.large.max_model_len_tokens=224"),
        )


def test_plan_counts_min_gain_in(make_spec, tmp_path, engine):
    lines = flow.plan(load(make_spec(budget__min_gain=2)), flow.Options(), BARS, engine.opened)
    gains = [line["gain"] for line in oracle.scores(tmp_path / "out").values() if line["gain"] is not None]
    assert lines[-1].rows == sum(gain >= 2 for gain in gains)


def test_plan_prices_budgets_and_run_goes_on_at_any(make_spec, corpus, tmp_path, engine):
    spec = load(make_spec())
    lines = flow.plan(spec, flow.Options(), BARS, engine.opened)
    scored = oracle.scores(tmp_path / "out")
    for line in lines:
        routed = oracle.top(scored, str(line.fraction))
        assert line.rows == len(routed)
        assert line.prompt_tokens == sum(scored[key]["prompt_tokens"] for key in routed)
        assert line.predicted_gain == pytest.approx(sum(scored[key]["gain"] for key in routed))
    before = len(sent(engine))
    run(make_spec(budget__fraction=0.7), engine)
    assert not [line for line in sent(engine)[before:] if line.startswith("router")]
    oracle.check(tmp_path / "out", corpus, "0.7")


def test_a_folder_that_is_not_a_job_is_left_alone(make_spec, tmp_path, engine):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("mine")
    with pytest.raises(OutputError, match="not a job's folder"):
        run(make_spec(), engine)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_a_removed_output_shard_is_written_again(make_spec, corpus, tmp_path, engine):
    run(make_spec(), engine)
    (tmp_path / "out/data/a.parquet").unlink()
    (tmp_path / "out/_SUCCESS").unlink()
    before = len(sent(engine))
    run(make_spec(), engine)
    assert len(sent(engine)) == before
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_no_readable_rows_is_a_whole_job(make_spec, corpus, tmp_path, engine):
    for path in corpus.rglob("*.parquet"):
        if path.name != "c-none.parquet":
            path.unlink()
    assert run(make_spec(), engine).report.as_json()["rows"] == 0
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_missing_column_stops_before_anything_is_written(make_spec, tmp_path, engine):
    with pytest.raises(InputError, match="no column 'txet'.*did you mean 'text'"):
        run(make_spec(input__columns__source="txet"), engine)
    assert not (tmp_path / "out").exists()


def test_the_job_report_adds_up(make_spec, tmp_path, engine):
    report = run(make_spec(), engine).report.as_json()
    scored = oracle.scores(tmp_path / "out")
    gains = sorted(line["gain"] for line in scored.values() if line["gain"] is not None)
    routed = sorted(scored[key]["gain"] for key in oracle.top(scored, "0.3"))
    for name, values in (("all", gains), ("routed", routed)):
        found = report["gain"][name]
        assert found["rows"] == len(values) == sum(found["histogram"]["counts"])
        assert (found["min"], found["max"]) == (values[0], values[-1])
        assert found["mean"] == pytest.approx(sum(values) / len(values))
        # The i-th decile: the smallest value that at least i tenths of the values do not exceed.
        assert found["deciles"] == [values[-(-len(values) * i // 10) - 1] for i in range(1, 10)]
    assert report["threshold"] == routed[0]
    assert report["predicted_gain_bought"] == pytest.approx(sum(routed))
    assert report["tokens"]["large"]["out"] == 5 * len(routed)
    assert report["direction"]["en-de"]["planned_large"] == len(routed)
    assert report["direction"]["en-unknown"] == {"large": 0, "planned_large": 0, "rows": 2, "skipped": 2}
    assert json.loads((tmp_path / "out/reports/job.json").read_text()) == report


@pytest.mark.parametrize("kind", ["random", "length", "entropy"])
def test_a_job_routes_by_any_router_that_needs_no_reference(make_spec, corpus, tmp_path, engine, kind):
    outcome = run(make_spec(router={"kind": kind}), engine)
    oracle.check(tmp_path / "out", corpus, "0.3")
    assert not any(line.startswith("router") for line in sent(engine)), "no vLLM engine scores"
    assert any(
        f"scores of router kind {kind} are not gains" in told for told in outcome.report.as_json()["warnings"]
    )


def test_scores_that_are_no_gains_have_no_lowest_gain(make_spec, engine):
    with pytest.raises(UsageError, match="scores of router.kind length are not gains"):
        run(make_spec(router={"kind": "length"}, budget__min_gain=0), engine)


def test_several_inputs_are_one_job(make_spec, corpus, tmp_path, engine):
    write_shard(tmp_path / "more" / "a.parquet", ["One more.", "And another."])
    outcome = run(make_spec(input__uri=[str(corpus), str(tmp_path / "more")]), engine)
    assert outcome.report.as_json()["rows"] == 73
    assert (tmp_path / "out/data/0/sub/d.parquet").exists()
    assert pq.read_table(tmp_path / "out/data/1/a.parquet").num_rows == 2
