"""The audit on a made-up engine, and its statistics against scipy and by hand."""

from collections import Counter
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from routelmt_batch.errors import WorkChanged
from routelmt_batch.job import flow
from routelmt_batch.spec.file import load
from routelmt_batch.stages.audit import quotas
from routelmt_batch.stages.audited import Audited, advice, summarise
from routelmt_batch.stats.drift import Drift, from_quantiles
from tests.conftest import COLUMNS, write_shard
from tests.fake_engine import FakeEngine
from tests.stages.test_guard import BARS, calls, chrf, output

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_page")]


@pytest.fixture
def engine(tmp_path):
    return FakeEngine(tmp_path / "sent.log")


@pytest.fixture
def corpus(tmp_path):
    root = tmp_path / "corpus"
    for name, target in (("a", "de"), ("b", "zh")):
        rows = range(40)
        write_shard(
            root / f"{name}.parquet",
            [f"Sentence {i * i}." if i else None for i in rows],
            row_group_size=7,
            to=pa.array([target] * 40),
            reference=pa.array([f"small of {i}" if i % 3 else f"large of {i}" for i in rows]),
        )
    return root


@pytest.fixture
def audited_spec(make_spec, corpus):
    def write(audit, **settings):
        columns = COLUMNS | {"reference": "reference"}
        return make_spec(
            input={"uri": str(corpus), "columns": columns}, audit=audit, metric="chrf", **settings
        )

    return write


def run(spec, engine):
    return flow.run(load(spec), flow.Options(), BARS, engine.opened)


def sample_of(folder):
    (path,) = (folder / "_job/audit").glob("*.parquet")
    return pq.read_table(path).to_pylist()


def test_a_sample_is_translated_by_both_models_beside_the_budget(audited_spec, tmp_path, engine):
    outcome = run(audited_spec({"fraction": 0.25, "min_rows": 1}), engine)
    rows, sample = output(tmp_path / "out"), sample_of(tmp_path / "out")
    chosen = {(line["shard"], line["row"]) for line in sample}
    assert len(chosen) == len(sample) == 20  # a quarter of 78 rows, rounded up
    sizes = Counter(
        (f"{row['from']}-{row['to']}", row["route"]) for row in rows.values() if row["status"] == "ok"
    )
    drawn = Counter((line["direction"], line["route"]) for line in sample)
    assert all(abs(drawn[stratum] - 20 * size / 78) < 1 for stratum, size in sizes.items())
    large = {key for key, row in rows.items() if row["route"] == "large"}
    assert sorted(calls(engine, "large")) == sorted(large | chosen), "each row once"
    assert sorted(calls(engine, "small")) == sorted((set(output_rows(rows)) - large) | chosen)
    audit = outcome.report.as_json()["audit"]
    assert audit["calls"] == {"large": len(chosen - large), "small": len(chosen & large)}
    of = {(line["shard"], line["row"]): (line["direction"], line["route"]) for line in sample}
    realised = [chrf("large", key, rows) - chrf("small", key, rows) for key in of]
    stand_for = [sizes[stratum] / drawn[stratum] for stratum in of.values()]
    assert audit["realised"] == pytest.approx(np.average(realised, weights=stand_for))
    assert outcome.report.as_json()["budget"]["used"] == len(large)


def output_rows(rows):
    return [key for key, row in rows.items() if row["status"] != "skipped"]


def test_the_sample_is_the_seeds_and_resumes(audited_spec, tmp_path, engine):
    spec = audited_spec({"fraction": 0.25, "min_rows": 1, "seed": 3})
    run(spec, engine)
    before = len(calls(engine, "large"))
    (tmp_path / "out/_SUCCESS").unlink()
    again = run(spec, engine)
    assert again.new and len(calls(engine, "large")) == before
    other = FakeEngine(tmp_path / "other.log")
    loaded = load(spec, (f"output.uri={tmp_path / 'other'}",))
    flow.run(loaded, flow.Options(), BARS, other.opened)
    assert sample_of(tmp_path / "other") == sample_of(tmp_path / "out")
    loaded = load(spec, (f"output.uri={tmp_path / 'third'}", "audit.seed=4"))
    flow.run(loaded, flow.Options(), BARS, other.opened)
    assert sample_of(tmp_path / "third") != sample_of(tmp_path / "out")


def test_at_least_min_rows_and_at_most_max_rows(audited_spec, tmp_path, engine):
    report = run(audited_spec({"fraction": 0.001, "min_rows": 30}), engine).report.as_json()
    assert report["audit"]["sampled"] == 30
    spec = audited_spec({"fraction": 1, "min_rows": 1, "max_rows": 9})
    loaded = load(spec, (f"output.uri={tmp_path / 'other'}",))
    assert flow.run(loaded, flow.Options(), BARS, engine.opened).report.as_json()["audit"]["sampled"] == 9


def test_a_row_of_a_large_stratum_counts_for_more(audited_spec, corpus, tmp_path, engine):
    """One row of each stratum, however large it is."""
    write_shard(corpus / "c.parquet", ["One row alone."], to=pa.array(["ru"]), reference=pa.array(["x"]))
    report = run(audited_spec({"fraction": 0.01, "min_rows": 5}), engine).report.as_json()
    rows, sample = output(tmp_path / "out"), sample_of(tmp_path / "out")
    strata = Counter((f"{r['from']}-{r['to']}", r["route"]) for r in rows.values() if r["status"] == "ok")
    assert len(sample) == len(strata) == 5
    weights = [strata[line["direction"], line["route"]] for line in sample]
    assert min(weights) == 1 and max(weights) > 20
    realised = [
        chrf("large", key, rows) - chrf("small", key, rows)
        for key in ((line["shard"], line["row"]) for line in sample)
    ]
    assert report["audit"]["realised"] == pytest.approx(np.average(realised, weights=weights))
    assert report["audit"]["mean_delta"]["random"]["value"] == pytest.approx(report["audit"]["realised"])


def test_quotas_are_in_proportion_and_leave_no_stratum_out():
    sizes = Counter({("a", "small"): 700, ("a", "large"): 299, ("b", "small"): 1})
    assert quotas(sizes, 100) == {("a", "small"): 70, ("a", "large"): 29, ("b", "small"): 1}
    assert sum(quotas(sizes, 10_000).values()) == 1000
    many = Counter({(f"{i}", "small"): 10 + i for i in range(50)})
    found, share = quotas(many, 60), 60 / sum(many.values())
    assert sum(found.values()) == 60
    assert all(found[one] == 1 or abs(found[one] - share * size) < 1 for one, size in many.items())
    few = quotas(many, 20)
    assert sum(few.values()) == 20 and all(few[f"{i}", "small"] for i in range(30, 50)), "the largest"


def sample(n: int, seed: int = 0, noise: float = 5.0) -> Audited:
    generator = np.random.default_rng(seed)
    predicted = generator.normal(10, 8, n)
    realised = predicted + generator.normal(0, noise, n)
    return Audited(
        predicted,
        realised,
        generator.integers(1, 60, n).astype(float),
        np.array(["en-de", "de-en"] * (n // 2)),
        np.ones(n, np.int64),
    )


def test_the_figures_are_those_of_scipy_and_of_a_sort():
    rows = sample(400)
    found = summarise(rows, Decimal("0.3"), seed=1)
    spearman = stats.spearmanr(rows.predicted, rows.realised).statistic
    assert found["spearman"]["value"] == pytest.approx(spearman)
    assert found["spearman"]["low"] < spearman < found["spearman"]["high"]
    top = np.argsort(-rows.predicted)[:120]
    assert found["mean_delta"]["router"]["value"] == pytest.approx(rows.realised[top].mean())
    longest = np.argsort(-rows.source_tokens, kind="stable")[:120]
    assert found["mean_delta"]["length"]["value"] == pytest.approx(rows.realised[longest].mean())
    assert found["mean_delta"]["random"]["value"] == pytest.approx(rows.realised.mean())
    assert found["severe_loss_rate"]["value"] == pytest.approx(100 * (rows.realised[top] <= -5).mean())
    assert [group["rows"] for group in found["groups"]] == [80] * 5
    assert found["directions"]["en-de"]["realised"] == pytest.approx(rows.realised[::2].mean())
    assert advice(found, None) == []


def test_drift_is_the_textbooks():
    generator = np.random.default_rng(0)
    held_out, new = generator.normal(0, 1, 5000), generator.normal(0.5, 1, 20_000)
    quantiles = np.quantile(held_out, np.linspace(0, 1, 101))
    below = np.searchsorted(np.sort(new), quantiles, side="right")
    found = from_quantiles(below, len(new), quantiles, 5000)
    # On a grid of a hundred quantiles the distance is at most a hundredth off.
    assert found.ks == pytest.approx(stats.ks_2samp(held_out, new).statistic, abs=0.01)
    actual = np.histogram(new, np.r_[-np.inf, quantiles[10:100:10], np.inf])[0] / len(new)
    assert found.psi == pytest.approx(((actual - 0.1) * np.log(actual / 0.1)).sum(), rel=0.01)
    same = np.searchsorted(np.sort(held_out), quantiles, side="right")
    assert from_quantiles(same, len(held_out), quantiles, 5000).psi < 0.001


def test_scores_with_ties_have_drift_too():
    held_out = np.repeat([1.0, 2.0, 3.0], [50, 30, 20])
    quantiles = np.quantile(held_out, np.linspace(0, 1, 101))
    below = np.searchsorted(held_out, quantiles, side="right")
    found = from_quantiles(below, 100, quantiles, 100)
    assert found.psi == pytest.approx(0, abs=0.01) and found.ks < 0.02


def test_advice_says_when_to_train_anew():
    chance = Audited(
        np.random.default_rng(0).normal(size=300),
        np.random.default_rng(1).normal(size=300),
        np.arange(300.0),
        np.array(["en-de"] * 300),
        np.ones(300, np.int64),
    )
    told = advice(summarise(chance, Decimal("0.3"), 0), Drift(1000, 0.4, 0.3, 0.02))
    assert any("population stability index 0.40" in line and "retrain the router" in line for line in told)
    assert any("cannot tell the router from routing by random" in line for line in told)
    backwards = sample(300)
    backwards = replace(backwards, predicted=-backwards.predicted)
    told = advice(summarise(backwards, Decimal("0.3"), 0), None)
    assert any("routing by random would have gained" in line and "retrain" in line for line in told)


def test_too_few_rows_have_no_figures():
    assert summarise(sample(2), Decimal("0.3"), 0) == {"rows": 2}


@pytest.mark.parametrize("fraction", ["0", "0.3", "1"])
def test_a_corpus_with_nothing_to_sample_is_a_whole_job(audited_spec, corpus, tmp_path, engine, fraction):
    for path in corpus.rglob("*.parquet"):
        write_shard(path, ["", None], reference=pa.array(["x", "y"]))
    spec = audited_spec({"fraction": 0.5}, budget={"fraction": fraction}, run__max_skipped_fraction=1)
    report = run(spec, engine).report.as_json()
    assert report["audit"]["rows"] == 0 and report["rows"] == 4


def test_an_audit_that_is_given_up_leaves_a_whole_job(audited_spec, tmp_path, engine):
    spec = audited_spec({"fraction": 0.5, "min_rows": 1})
    large = []
    with engine.stopping(lambda label, row: large.append(label == "large") or sum(large) > 23):
        run(spec, engine)
    loaded = load(spec, ("audit.fraction=0",))
    assert flow.run(loaded, flow.Options(), BARS, engine.opened).report.as_json()["audit"] is None


def test_routing_alike_asks_for_nothing():
    rows = sample(100)
    assert advice(summarise(rows, Decimal(1), 0), None) == [], "every routing takes all rows"


def test_few_rows_tell_nothing_of_drift():
    generator = np.random.default_rng(0)
    held_out, new = generator.normal(0, 1, 5000), generator.normal(0, 1, 25)
    quantiles = np.quantile(held_out, np.linspace(0, 1, 101))
    below = np.searchsorted(np.sort(new), quantiles, side="right")
    assert advice(None, from_quantiles(below, 25, quantiles, 5000)) == []


def measured(engine):
    return [label for lanes in engine.lanes_together for label in lanes if label.startswith("chrf")]


def test_what_the_guard_measured_is_not_measured_again(audited_spec, tmp_path, engine):
    guard = {"mode": "hypothesis", "keep_small_above": 101, "candidates": 1, "verify": True}
    spec = audited_spec({"fraction": 1, "min_rows": 1}, guard=guard)
    outcome = run(spec, engine)
    rows = output(tmp_path / "out")
    stages = {
        stage: [
            (line["shard"], line["row"], line["route"])
            for path in (tmp_path / "out/_job" / stage).glob("*.parquet")
            for line in pq.read_table(path).to_pylist()
        ]
        for stage in ("quality", "audit_quality")
    }
    assert stages["quality"] and not set(stages["quality"]) & set(stages["audit_quality"])
    both = stages["quality"] + stages["audit_quality"]
    assert sorted(both) == sorted((*key, route) for key in output_rows(rows) for route in ("small", "large"))
    realised = [chrf("large", key, rows) - chrf("small", key, rows) for key in output_rows(rows)]
    assert outcome.report.as_json()["audit"]["realised"] == pytest.approx(np.mean(realised))


def test_a_finished_job_can_be_audited_and_its_sample_stays_as_it_was_drawn(audited_spec, tmp_path, engine):
    plain = audited_spec({"fraction": 0})
    before = run(plain, engine)
    whole = output(tmp_path / "out")
    assert before.report.as_json()["audit"] is None and not run(plain, engine).new
    spec = audited_spec({"fraction": 0.25, "min_rows": 1})
    after = run(spec, engine)
    assert (
        after.new
        and after.report.as_json()["audit"]["sampled"] == after.report.as_json()["audit"]["rows"] == 20
    )
    assert output(tmp_path / "out") == whole and not run(spec, engine).new
    assert not run(plain, engine).new, "without an audit there is nothing more to do"
    with pytest.raises(WorkChanged, match=r"audit: was .*'0\.25'.*, is .*'0\.5'"):
        run(audited_spec({"fraction": 0.5, "min_rows": 1}), engine)


def test_rows_of_the_sample_without_a_quality_are_told(audited_spec, corpus, engine):
    path = corpus / "a.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("reference")
    pq.write_table(table.set_column(at, "reference", pa.nulls(40, pa.string())), path)
    report = run(audited_spec({"fraction": 1, "min_rows": 1}), engine).report.as_json()
    assert (report["audit"]["sampled"], report["audit"]["rows"]) == (78, 39)
    assert any("39 of 78 rows of the audit could not be measured" in told for told in report["warnings"])


def test_an_audit_of_a_finished_job_that_was_stopped_goes_on(audited_spec, tmp_path, engine):
    assert run(audited_spec({"fraction": 0}), engine).report.audit is None
    spec = audited_spec({"fraction": 0.25, "min_rows": 1})
    with engine.stopping(lambda label, row: True):
        run(spec, engine)
    sample = sample_of(tmp_path / "out")
    outcome = run(spec, engine)
    assert outcome.new and outcome.report.audit.sampled == len(sample) > 0
    assert not run(spec, engine).new
