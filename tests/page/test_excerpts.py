"""The rows of a shard that the page shows, against a sort of the whole shard."""

import json

import pyarrow.parquet as pq
import pytest

from routelmt_batch.page import excerpts
from routelmt_batch.rows import SAMPLE
from routelmt_batch.stages import finished as finished_job
from tests.page.conftest import SCRIPT, run


def output(job, shard):
    return pq.read_table(job.folder.data(shard)).to_pylist()


def shown(job, shard, rows):
    return excerpts.excerpt(job, job.folder.ledger(), shard, rows)


@pytest.mark.parametrize("rows", [0, 1, 7, 1000])
@pytest.mark.parametrize("batch_rows", [5, 16_384])
def test_rows_are_those_of_a_full_sort(finished, rows, batch_rows, monkeypatch):
    monkeypatch.setattr(finished_job, "_BATCH_ROWS", batch_rows)
    cut = finished.report.as_json()["threshold"]
    for shard in finished.shards:
        lines = output(finished, shard)
        gains = {
            at: line["predicted_gain"] for at, line in enumerate(lines) if line["predicted_gain"] is not None
        }
        found = shown(finished, shard, rows)
        assert found["gained"] == sorted(gains, key=lambda at: (-gains[at], at))[:rows]
        assert found["cut"] == sorted(gains, key=lambda at: (abs(gains[at] - cut), at))[:rows]
        failed = [
            at for at, line in enumerate(lines) if line["status"] in ("failed", "fallback", "quarantined")
        ]
        assert found["failed"] == failed[:rows]
        assert set(found["rows"]) == {*found["gained"], *found["cut"], *found["failed"]}


def test_rows_say_what_the_output_says_and_both_models_texts(finished):
    both = 0
    for shard in finished.shards:
        lines = output(finished, shard)
        for at, row in shown(finished, shard, 1000)["rows"].items():
            line = lines[at]
            assert row["source"] == line["text"]
            assert (row["source_lang"], row["target_lang"]) == (line["from"], line["to"])
            assert [row[key] for key in ("gain", "route", "planned_route", "status", "reason")] == [
                line[key] for key in ("predicted_gain", "route", "planned_route", "status", "reason")
            ]
            if line["route"]:
                assert row[line["route"]] == line["translation"]
            for model in ("small", "large"):
                assert row[model] in (None, f"{model} of {at}")
            both += row["small"] is not None and row["large"] is not None
    measured = finished.folder.ledger().rows(SAMPLE)
    assert both > measured / 2, "the audit's rows and the guard's have both"


def test_what_a_clean_up_took_is_left_out(finished):
    for part in (finished.folder.work / "translations").path.iterdir():
        part.unlink()
    row = next(iter(shown(finished, "a.parquet", 1)["rows"].values()))
    assert row[row["route"]]


def test_a_long_text_is_cut_and_says_so():
    assert excerpts.clip("x" * 2000) == "x" * 2000
    assert excerpts.clip("x" * 3234) == "x" * 2000 + " … (1,234 more characters)"


def test_shards_that_stand_out_come_first_and_their_number_is_bounded(finished):
    lines = [
        {"name": name, "rows": rows, "marks": marks, "failures": failures}
        for name, rows, marks, failures in (
            ("a", 5, [], 0), ("b", 5, [], 2), ("c", 0, [], 0), ("d", 5, ["share low"], 0), ("e", 5, [], 0),
        )
    ]  # fmt: skip
    assert excerpts.choose_shards(lines, 4) == ["d", "b", "a", "e"]
    assert excerpts.choose_shards(lines, 1) == ["d"]
    assert excerpts.choose_shards(lines, 0) == []


def test_a_gain_that_is_no_number_is_not_in_the_page(audited, engine, monkeypatch):
    from routelmt_batch.page.page import render
    from tests import fake_engine

    usual = fake_engine.gain_of
    monkeypatch.setattr(
        fake_engine, "gain_of", lambda line: float("inf") if line["row"] == 4 else usual(line)
    )
    job = run(audited(audit={}, guard={}), engine)
    text = render(job, job.spec.page)
    data = text.split('id="data">')[1].split("</script>")[0]
    json.loads(data, parse_constant=lambda name: pytest.fail(name))
    assert SCRIPT not in text
