"""Two jobs, one against the other, with pandas-free oracles: dictionaries over whole tables, scipy."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from routelmt_batch.page.comparison import compare
from routelmt_batch.page.page import render
from routelmt_batch.stages import finished as finished_job
from routelmt_batch.stages.finished import FinishedJob
from tests import fake_engine
from tests.conftest import write_shard
from tests.fake_engine import FakeEngine
from tests.page.conftest import SCRIPT, run

pytestmark = pytest.mark.slow


def rows_of(job: FinishedJob) -> dict:
    return {
        (shard, at): line
        for shard in job.shards
        for at, line in enumerate(pq.read_table(job.folder.data(shard)).to_pylist())
    }


@pytest.fixture
def nights(audited, engine, corpus, tmp_path, monkeypatch):
    """Two jobs: the second has another budget, other scores, one shard changed, one shorter, one new."""
    plain = {"audit": {}, "guard": {}, "metric": None}
    first = run(audited(**plain, output={"uri": str(tmp_path / "first")}), engine)
    usual = fake_engine.gain_of
    monkeypatch.setattr(fake_engine, "gain_of", lambda line: usual(line) + line["row"] % 5 / 3)
    table = pq.read_table(corpus / "a.parquet")
    pq.write_table(table.slice(0, 40), corpus / "a.parquet", row_group_size=11)
    write_shard(corpus / "b.parquet", ["Other."] * 30 + table["text"].to_pylist()[30:])
    write_shard(corpus / "new.parquet", ["New."] * 10)
    second = audited(**plain, output={"uri": str(tmp_path / "second")}, budget__fraction="0.5")
    return run(second, FakeEngine(tmp_path / "second.log")), first


def in_both(now: dict, before: dict) -> list:
    same = ("text", "from", "to")
    return [key for key in now if key in before and all(now[key][name] == before[key][name] for name in same)]


@pytest.mark.parametrize("batch_rows", [7, 16_384])
def test_rows_routed_differently(nights, batch_rows, monkeypatch):
    monkeypatch.setattr(finished_job, "_BATCH_ROWS", batch_rows)
    now, before = map(rows_of, nights)
    common = in_both(now, before)
    different = [key for key in common if now[key]["route"] != before[key]["route"]]
    found = compare(*nights, 5)["routed"]
    assert (found["common"], found["different"]) == (len(common), len(different))
    assert len(common) < len(now) and different
    ways = [f"{before[key]['route'] or 'none'} to {now[key]['route'] or 'none'}" for key in different]
    assert found["ways"] == {way: ways.count(way) for way in set(ways)}
    shards = [shard for shard, _ in different]
    assert found["shards"] == {shard: shards.count(shard) for shard in set(shards)}
    moved = sorted(
        (abs(now[key]["predicted_gain"] - before[key]["predicted_gain"]) for key in different), reverse=True
    )
    assert [example["moved"] for example in found["examples"]] == pytest.approx(moved[:5], abs=1e-5)
    for example in found["examples"]:
        line = now[example["shard"], example["row"]]
        assert (example["now"]["source"], example["now"]["translation"]) == (
            line["text"],
            line["translation"],
        )


def test_figures_and_drift(nights):
    found = compare(*nights, 0)
    reports = [job.report.as_json() for job in nights]
    assert found["figures"]["threshold"] == [report["threshold"] for report in reports]
    assert found["figures"]["share translated by large"] == [
        report["fraction"]["actual"] for report in reports
    ]
    assert found["status"]["failed"] == [0, reports[1]["status"]["failed"]]
    assert found["reason"]["engine_error"] == [0, reports[1]["status"]["failed"]]
    assert found["direction"]["en-zh"][0] == pytest.approx(
        reports[0]["direction"]["en-zh"]["large"] / reports[0]["direction"]["en-zh"]["rows"]
    )
    assert found["settings"]["budget.fraction"] == ["0.5", "0.3"]
    assert "models.small's weights" not in found["settings"]
    assert found["routed"]["examples"] == []
    scores = [
        np.array(
            [line["predicted_gain"] for line in rows_of(job).values() if line["predicted_gain"] is not None]
        )
        for job in nights
    ]
    # The supremum lies at any score; ours are at the other's percentiles, so it is at most that.
    exact = stats.ks_2samp(*scores).statistic
    points = np.quantile(scores[1], np.linspace(0, 1, 101), method="inverted_cdf")
    shares = [(side[:, None] <= points).mean(axis=0) for side in scores]
    assert found["drift"]["ks"] == pytest.approx(np.abs(shares[0] - shares[1]).max())
    assert 0 < found["drift"]["ks"] <= exact + 1e-9
    assert found["drift"]["rows"] == len(scores[0])


def test_a_job_against_itself_differs_in_nothing(finished):
    found = compare(finished, finished, 10)
    assert found["drift"]["ks"] == 0 and found["drift"]["psi"] == pytest.approx(0, abs=1e-4)
    assert (found["routed"]["different"], found["settings"]) == (0, {})
    assert found["routed"]["common"] == finished.report.as_json()["rows"]


def test_the_page_shows_it_and_escapes_it(nights):
    text = render(nights[0], nights[0].spec.page, compare(*nights, 1000))
    assert "Rows routed differently" in text and SCRIPT not in text and "&lt;/script&gt;" in text
    assert "Sentence" not in render(
        nights[0], nights[0].spec.page.model_copy(update={"rows": 0}), compare(*nights, 0)
    )
