"""What a scheduler reads of a command: its exit code, the last line of its output, its logs."""

import json
import shutil
import sys
from datetime import datetime
from unittest.mock import Mock

import pyarrow as pa
import pytest

from routelmt_batch.cli.ending import Ending
from routelmt_batch.errors import DiskFull, Interrupted, RoutelmtError
from routelmt_batch.progress import Bars
from tests.conftest import MODELS, write_shard
from tests.fake_engine import FakeEngine
from tests.learning.test_evaluate import table


def last_line(answer) -> dict:
    return json.loads(answer.stdout.splitlines()[-1])


def two_rows_fail(label, row) -> str:
    bad = row["shard"] == "sub/d.parquet" and row["row"] < 2
    return "engine_error" if bad and label != "router" else ""


def test_a_job_that_is_done_says_what_it_did(invoke, make_spec, tmp_path):
    answer = invoke("run", make_spec())
    line = last_line(answer)
    assert answer.exit_code == line["exit_code"] == 0
    assert {key: line[key] for key in ("job", "command", "output", "status", "report")} == {
        "job": "test",
        "command": "run",
        "output": str(tmp_path / "out"),
        "status": "done",
        "report": str(tmp_path / "out/reports/job.json"),
    }
    # 71 rows, six of them not translatable: 0.3 of 65 are 19 places.
    assert (line["rows"], line["ok"], line["skipped"], line["failed"]) == (71, 65, 6, 0)
    assert (line["large"], line["places"], line["share_to_large"]) == (19, 19, 19 / 65)
    assert "19 planned, 19 used" in answer.stdout, "people have their tables before it"
    assert last_line(invoke("run", make_spec())) == line, "of a finished job, too"


def test_failed_rows_end_with_three(invoke, make_spec, fake_engine):
    fake_engine.fails = two_rows_fail
    answer = invoke("run", make_spec(run__max_failed_fraction=0.5))
    line = last_line(answer)
    assert answer.exit_code == line["exit_code"] == 3
    assert (line["status"], line["failed"], line["ok"]) == ("done_with_failures", 2, 63)


@pytest.mark.parametrize(
    ("error", "code", "status", "message"),
    [
        (RoutelmtError("an engine died"), 1, "failed", "an engine died"),
        (DiskFull("no space"), 1, "failed", "no space"),
        (PermissionError(13, "Permission denied"), 1, "failed", "[Errno 13] Permission denied"),
        (
            Interrupted("stopped by SIGTERM", 143),
            143,
            "stopped",
            "stopped by SIGTERM. Run the same command again to continue.",
        ),
        (KeyboardInterrupt(), 130, "stopped", "stopped. Run the same command again to continue."),
        (
            SystemExit(15),
            143,
            "stopped",
            "stopped by SIGTERM. Run the same command again to continue.",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan"])
def test_what_ended_a_job_is_told(invoke, make_spec, monkeypatch, command, error, code, status, message):
    monkeypatch.setattr(FakeEngine, "run", Mock(side_effect=error))
    answer = invoke(command, make_spec())
    line = last_line(answer)
    assert answer.exit_code == line["exit_code"] == code
    assert (line["status"], line["error"], line["message"]) == (status, type(error).__name__, message)
    assert (line["job"], line["command"]) == ("test", command)
    assert message in answer.stderr


def test_a_defect_has_its_traceback_before_the_line_and_no_words_in_it(invoke, make_spec, monkeypatch):
    monkeypatch.setattr(FakeEngine, "run", Mock(side_effect=KeyError("SECRETWORD")))
    answer = invoke("run", make_spec())
    line = last_line(answer)
    assert answer.exit_code == line["exit_code"] == 1
    assert (line["status"], line["error"]) == ("failed", "KeyError") and "SECRETWORD" not in str(line)
    assert "Traceback (most recent call last)" in answer.stderr


def test_a_plan_says_how_to_go_on_or_that_its_budget_is_frozen(invoke, make_spec):
    spec = make_spec()
    told = " ".join(invoke("plan", spec).stdout.split())
    assert "Next: routelmt-batch run" in told and "--budget P" in told
    invoke("run", spec)
    told = " ".join(invoke("plan", spec).stdout.split())
    assert "Its budget is frozen" in told and "--budget P" not in told


@pytest.mark.parametrize("command", ["run", "plan", "label", "train"])
def test_without_a_spec_there_is_a_line(invoke, command):
    line = last_line(invoke(command, "nowhere.yaml"))
    assert (line["job"], line["output"], line["exit_code"]) == (None, None, 2)
    assert line["error"] == "SpecError" and "no such spec file" in line["message"]


def test_plan_and_dry_run_have_theirs(invoke, make_spec, tmp_path):
    line = last_line(invoke("plan", make_spec()))
    assert line["status"] == "done" and len(line["budgets"]) == 20
    assert (line["budgets"][5]["fraction"], line["budgets"][5]["rows"]) == ("0.3", 19)
    rates = tmp_path / "rates.yaml"
    pool = "{rows_per_second_per_gpu: 2, gpus: 1, price_per_gpu_hour: 3600}"
    rates.write_text("".join(f"{name}: {pool}\n" for name in ("router", "small", "large")))
    spec = make_spec(run__pools="sequential")
    line = last_line(invoke("plan", spec, "--rates", rates))
    # Two rows a second: all 65 rows by the router, then each by small or large.
    assert line["budgets"][5]["cost"] == pytest.approx(65)
    assert line["budgets"][5]["hours"] == pytest.approx(65 / 3600)
    line = last_line(invoke("run", make_spec(), "--dry-run"))
    assert line["status"] == "checked" and "71 rows in 4 shards" in line["checked"]["input"]


def test_evaluations_and_calibrations_have_theirs(invoke, tmp_path):
    tables, out, router = table(tmp_path / "labels.parquet"), tmp_path / "eval", tmp_path / "router"
    shutil.copytree(MODELS / "router", router)
    given = ("--log-format", "json", "--time-limit", "1h", "--metrics-port", "0")
    length = f"length={MODELS / 'small'}"
    answer = invoke("evaluate", tables, "--router", length, "--out", out, "--resamples", "20", *given)
    assert answer.exit_code == 0, answer.output
    assert len(answer.stdout.splitlines()) == 1 and json_lines(answer.stderr)
    line, written = last_line(answer), json.loads((out / "evaluation.json").read_text())
    assert (line["job"], line["output"], line["status"], line["rows"]) == ("eval", str(out), "done", 300)
    assert line["report"] == str(out / "evaluation.json")
    for name, router_figures in line["routers"].items():
        overall = written["routers"][name]["overall"]
        assert router_figures == {metric: overall[metric]["value"] for metric in router_figures}
    assert {"length", "random", "oracle-gain"} < line["routers"].keys()
    answer = invoke("calibrate", router, tables, "--fraction", "0.25", "--dtype", "float32", *given)
    assert answer.exit_code == 0, answer.output
    card = json.loads((router / "routelmt.json").read_text())["calibration"]["thresholds"]
    assert last_line(answer)["thresholds"] == {"0.25": card["0.25"]["value"]}
    assert last_line(answer)["job"] == "router"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("evaluate", "x.parquet", "--out", "eval", "--budget", "2"),
            "--budget 2: give a number between 0 and 1",
        ),
        (("evaluate", "x.parquet", "--out", "eval", "--time-limit", "9"), "--time-limit 9: give hours"),
        (("calibrate", "nowhere", "x.parquet"), "nowhere: not a folder"),
    ],
)
def test_what_they_refuse_is_in_the_line(invoke, arguments, message):
    answer = invoke(*arguments)
    line = last_line(answer)
    assert answer.exit_code == line["exit_code"] == 2
    assert (line["command"], line["error"]) == (arguments[0], "UsageError") and message in line["message"]


def test_a_submitted_plan_does_not_say_how_to_go_on_here(invoke, make_spec, monkeypatch):
    monkeypatch.setenv("ROUTELMT_SUBMITTED", "routelmt-out-1")
    told = " ".join(invoke("plan", make_spec()).stdout.split())
    assert "Next: submit it again, with --budget P instead of --plan" in told


def test_people_at_a_terminal_are_spared_it(monkeypatch, capsys):
    bars = Bars.none()
    Ending("run", bars).print_line()
    assert json.loads(capsys.readouterr().out)["command"] == "run"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    Ending("run", bars).print_line()
    assert capsys.readouterr().out == ""
    bars.as_json = True
    Ending("run", bars).print_line()
    assert capsys.readouterr().out != ""


def json_lines(text: str) -> list[dict]:
    """Every line as JSON, but for those of the Ray that engine tests may have left in this process."""
    return [json.loads(line) for line in text.splitlines() if " pid=" not in line.partition(")")[0]]


def test_json_logs_are_an_object_a_line(invoke, make_spec, corpus, tmp_path):
    write_shard(corpus / "z.parquet", ["SECRETWORD."], to=pa.array(["fr"]))
    (corpus / "broken.parquet").write_bytes(b"rubbish")
    answer = invoke("run", make_spec(), "--log-format", "json")
    assert answer.exit_code == 3
    assert len(answer.stdout.splitlines()) == 1, "no tables beside the last line"
    assert last_line(answer)["unreadable_shards"] == 1
    lines = json_lines(answer.stderr)
    for line in lines:
        assert datetime.fromisoformat(line["time"]).utcoffset().total_seconds() == 0
        assert line["level"] in ("info", "warning", "error") and line["message"]
    unreadable, unknown, untrained, left = [line["message"] for line in lines if line["level"] == "warning"]
    assert unreadable.startswith(
        "broken.parquet cannot be read and is left out: Parquet file size is 7 bytes"
    )
    assert unknown == "2 of 72 rows will be skipped: unknown language codes: no code 1 time; 'xx' 1 time"
    assert untrained == "router: not trained on en-fr; its scores there are a guess"
    assert left == (
        "1 shard could not be read: repair each and run it as a separate job, with --shards broken.parquet and another --output"
    )
    score = [line for line in lines if line.get("stage") == "score"]
    assert [(line["rows_done"], line["rows"]) for line in score] == [(0, 72), (72, 72)]
    assert "SECRETWORD" not in answer.output
    again = invoke("run", make_spec(), "--log-format", "json", "--budget", "0.9")
    errors = json_lines(again.stderr)
    assert errors[-1]["level"] == "error" and "frozen at budget.fraction 0.3" in errors[-1]["message"]
    assert last_line(again)["error"] == "OutputError"
