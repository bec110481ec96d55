"""`--fail-if`: read strictly, told before the job where it cannot be known, judged exactly when it is done."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from scipy.stats import ks_2samp

from routelmt_batch.errors import UsageError
from routelmt_batch.job.conditions import Condition, Conditions, triggered
from routelmt_batch.stages.finished import FinishedJob
from routelmt_batch.store.folder import Folder
from tests.cli.test_ending import last_line, two_rows_fail
from tests.conftest import with_references, write_shard

pytestmark = pytest.mark.usefixtures("no_page")


def column(output: Path, name: str) -> list:
    return ds.dataset(output / "data").to_table([name])[name].to_pylist()


@pytest.mark.parametrize(
    ("text", "name", "limit"),
    [("failed>0.01", "failed", "0.01"), (" psi > 2.5 ", "psi", "2.5"), ("ks>1e-3", "ks", "0.001")],
)
def test_a_condition_is_a_name_and_a_number(text, name, limit):
    found = Condition.parse(text)
    assert found.name == name and float(found.limit) == float(limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("failed", "give NAME>NUMBER in quotes"),
        ("failed>=0.1", "give NAME>NUMBER"),
        ("failed>0.1.2", "give NAME>NUMBER"),
        ("failed>nan", "give NAME>NUMBER"),
        ("failed>-1", "give NAME>NUMBER"),
        ("failed<0.1", "give NAME>NUMBER"),
        (
            "fialed>0.1",
            "there is no condition 'fialed'; did you mean 'failed'\\?. Give one of failed: .*; unused_budget: .*; psi: ",
        ),
        ("failed>1", "failed is never more than 1; give a number below 1"),
        ("ks>1.5", "ks is never more than 1"),
    ],
)
def test_what_is_no_condition_is_told(text, message):
    with pytest.raises(UsageError, match=message):
        Condition.parse(text)


def test_a_condition_that_holds_ends_a_done_job_with_four(invoke, make_spec, fake_engine, tmp_path):
    fake_engine.fails = two_rows_fail
    spec = make_spec(run__max_failed_fraction=0.5)
    # Two of 71 rows: 0.0281690140845070422535...; as floats both limits are that.
    below, above = "failed>0.0281690140845070422535", "failed>0.0281690140845070422536"
    answer = invoke("run", spec, "--fail-if", below, "--fail-if", above)
    assert answer.exit_code == 4
    assert (tmp_path / "out/_SUCCESS").exists()
    assert f"error: --fail-if {below}: it is 0.02817" in answer.stderr and above not in answer.stderr
    line = last_line(answer)
    assert (line["status"], line["exit_code"]) == ("failed_if", 4)
    assert line["failed_if"] == [f"{below}: it is 0.02817"]
    report = json.loads((tmp_path / "out/reports/job.json").read_text())
    assert report["fail_if"] == [
        {"condition": below, "value": 2 / 71, "holds": True, "why": None},
        {"condition": above, "value": 2 / 71, "holds": False, "why": None},
    ]
    assert below in invoke("report", tmp_path / "out").stdout


def test_a_finished_job_is_judged_again(invoke, make_spec, fake_engine, tmp_path):
    fake_engine.fails = two_rows_fail
    spec = make_spec(run__max_failed_fraction=0.5)
    assert invoke("run", spec).exit_code == 3
    answer = invoke("run", spec, "--fail-if", "failed>0.01")
    assert answer.exit_code == 4 and "nothing to do" in answer.stderr
    assert invoke("run", spec, "--fail-if", "failed>0.1").exit_code == 3
    assert invoke("run", spec).exit_code == 3
    fake_engine.fails = lambda label, row: ""
    assert invoke("run", spec, "--retry-failed", "--fail-if", "failed>0").exit_code == 0


def test_unused_budget_is_of_the_places(invoke, make_spec, tmp_path):
    spec = make_spec(budget__fraction=0.9, budget__min_gain=1)
    large = None
    for limit, code in (("0.999", 0), ("0.0001", 4)):
        assert invoke("run", spec, "--fail-if", f"unused_budget>{limit}").exit_code == code
        large = column(tmp_path / "out", "route").count("large")
    value = json.loads((tmp_path / "out/reports/job.json").read_text())["fail_if"][0]["value"]
    assert 0 < large < 58 and value == pytest.approx((58 - large) / 58)  # floor(0.9 x 65) places


def test_places_that_are_held_back_for_escalation_are_of_the_budget(invoke, make_spec, corpus, tmp_path):
    """Of 19 places six (0.1 of 65 rows) are for the small translations that score lowest."""
    spec = make_spec(
        guard={"escalate_fraction": 0.1, "escalate_below": 101},
        metric="chrf",
        input__columns__reference=with_references(corpus),
        budget__fraction=0.3,
    )
    answer = invoke("run", spec, "--fail-if", "unused_budget>0")
    large = column(tmp_path / "out", "route").count("large")
    line = last_line(answer)
    assert (answer.exit_code, line["places"], line["large"], large) == (0, 19, 19, 19), answer.output
    assert column(tmp_path / "out", "reason").count("escalated") == 6


def test_outcomes_are_counted_in_all_rows_and_by_direction(
    invoke, make_spec, corpus, fake_engine, tmp_path, monkeypatch
):
    """Against counts of the output's columns and of the committed checks."""
    monkeypatch.setattr("tests.fake_engine.TRUNCATED", True)
    targets = ["de", "zh_CN", "zho_Hans", "tlh"] * 4
    write_shard(corpus / "e.parquet", ["", None, *[f"Number {i}." for i in range(14)]], to=pa.array(targets))
    failing = {"large": range(1, 60, 2), "small": (9,)}
    fake_engine.fails = lambda label, row: "engine_error" if row["row"] in failing.get(label, ()) else ""
    names = ("skipped", "truncated", "doubtful", "fallback", "empty", "failed")
    directions = {None: "", "en-de": "[en-de]", "en-zh": "[EN-zho_Hans]", "en-unknown": "[en-unknown]"}
    given = [f"{name}{text}>0" for name in names for text in directions.values()]
    options = [word for condition in given for word in ("--fail-if", condition)]
    assert invoke("run", make_spec(run__max_failed_fraction=1), *options).exit_code == 4
    out = tmp_path / "out"
    doubts = {
        (row["shard"], row["row"], row["route"])
        for row in ds.dataset(out / "_job/checks").to_table().to_pylist()
        if row["reasons"]
    }
    read = {"de": "en-de", "zh_CN": "en-zh", "zho_Hans": "en-zh"}
    rows = []
    for path in (out / "data").rglob("*.parquet"):
        shard = path.relative_to(out / "data").as_posix()
        for number, row in enumerate(pq.read_table(path).to_pylist()):
            rows.append(
                {
                    "direction": read.get(row["to"], "en-unknown"),
                    "skipped": row["status"] == "skipped",
                    "fallback": row["status"] == "fallback",
                    "failed": row["status"] in ("failed", "quarantined"),
                    "truncated": row["reason"] == "truncated",
                    "empty": row["reason"] in ("empty", "null", "empty_output"),
                    "doubtful": (shard, number, row["route"]) in doubts,
                }
            )
    expected = {}
    for name in names:
        for direction in directions:
            of = [row[name] for row in rows if direction in (None, row["direction"])]
            of_direction = f"[{direction}]" if direction else ""
            expected[f"{name}{of_direction}>0"] = sum(of) / len(of)
    report = json.loads((out / "reports/job.json").read_text())
    assert {line["condition"]: line["value"] for line in report["fail_if"]} == pytest.approx(expected)
    assert all(expected[f"{name}>0"] for name in names), "each is there to be counted"
    assert report["codes"] == {
        "spelled": {"zh": {"zh_CN": 4, "zho_Hans": 4}},
        "unknown": {"tlh": 4, "xx": 1, "(none)": 1},
    }
    assert "zh: 4 zh_CN, 4 zho_Hans" in invoke("report", out).stdout


def test_a_direction_that_no_row_has_cannot_be_evaluated(invoke, make_spec, tmp_path):
    answer = invoke("run", make_spec(), "--fail-if", "skipped[en-zh]>0.5")
    assert answer.exit_code == 4
    assert "skipped[en-zh]>0.5: cannot be evaluated (no row is of the direction en-zh)" in answer.stderr


def test_drift_is_from_an_earlier_job(invoke, make_spec, tmp_path):
    other = tmp_path / "other"
    # The earlier one has every gain that there is, and so has the distance among its quantiles.
    assert invoke("run", make_spec(), "--shards", "a*", "--output", other).exit_code == 0
    arguments = ["run", make_spec(), "--shards", "sub*", "--fail-if", "ks>0.0001", "--against", other]
    answer = invoke(*arguments)
    assert answer.exit_code == 4
    value = json.loads((tmp_path / "out/reports/job.json").read_text())["fail_if"][0]["value"]
    gains = [
        [gain for gain in column(folder, "predicted_gain") if gain is not None]
        for folder in (tmp_path / "out", other)
    ]
    assert value == pytest.approx(ks_2samp(*gains).statistic) and value > 0


def test_drift_is_from_the_routers_calibration(invoke, make_spec, tmp_path):
    answer = invoke("run", make_spec(), "--fail-if", "psi>1000", "--fail-if", "ks>0.0001")
    report = json.loads((tmp_path / "out/reports/job.json").read_text())
    assert answer.exit_code == 4
    assert [line["holds"] for line in report["fail_if"]] == [False, True]
    assert [line["value"] for line in report["fail_if"]] == [report["drift"]["psi"], report["drift"]["ks"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fail-if", "psi>0.2", "--set", "router={{kind: length}}"], "the router has no calibration to measure drift from"),
        (["--fail-if", "psi>0.2", "--against", "{nowhere}"], "no finished job there"),
        (["--fail-if", "failed>0.2", "--against", "{other}"], "needs --fail-if 'psi>...' or 'ks>...'"),
        (["--fail-if", "ks>0.2", "--against", "{other}", "--output", "{other}", "--shards", "b*"], "is this job's own output"),
        (["--fail-if", "ks>0.2", "--against", "{empty}"], "none of its rows has a score"),
        (["--fail-if", "unused_budget>0.2", "--budget", "0"], "a budget of 0 has no places"),
        (["--fail-if", "unused_budget>0.2", "--threshold", "1"], "a threshold without --cap has no places"),
        (["--fail-if", "unused_budget>0.2", "--budget", "0", "--dry-run"], "a budget of 0 has no places"),
    ],
)  # fmt: skip
def test_what_could_not_be_known_is_told_before_anything_is_scored(
    invoke, make_spec, tmp_path, arguments, message
):
    names = {name: str(tmp_path / name) for name in ("nowhere", "other", "empty")}
    invoke("run", make_spec(), "--shards", "b*", "--output", names["other"])
    invoke("run", make_spec(), "--shards", "c*", "--output", names["empty"])
    (tmp_path / "sent.log").unlink()
    answer = invoke("run", make_spec(), *(argument.format(**names) for argument in arguments))
    assert answer.exit_code == 2, answer.output
    assert message in last_line(answer)["message"]
    assert not (tmp_path / "sent.log").exists() and not (tmp_path / "out").exists()


def test_what_cannot_be_evaluated_holds(invoke, make_spec, tmp_path):
    other = tmp_path / "other"
    for output in (tmp_path / "out", other):
        assert invoke("run", make_spec(), "--output", output).exit_code == 0
    job, earlier = (FinishedJob.read(Folder.at(str(folder))) for folder in (tmp_path / "out", other))
    shutil.rmtree(other / "data")
    judged = Conditions.parse(["psi>0.2"], earlier).judge(job.folder, job.report, lambda: None)
    assert judged.as_json()["fail_if"][0]["holds"] and judged.fail_if[0].value is None
    assert f"psi>0.2: cannot be evaluated ({other} cannot be read" in triggered(judged.fail_if)[0]
    report = job.report.model_copy(update={"rows": 0, "direction": {}})
    judged = Conditions.parse(["failed>0.5"], None).judge(job.folder, report, lambda: None)
    assert triggered(judged.fail_if) == [
        "failed>0.5: cannot be evaluated (there is nothing to take a share of)"
    ]
