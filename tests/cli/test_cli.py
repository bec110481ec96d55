"""Commands as a user types them: help, exit codes, messages without tracebacks."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from routelmt_batch import __version__
from routelmt_batch.errors import RoutelmtError, UsageError
from routelmt_batch.learning.training.spec import load_train_spec
from routelmt_batch.spec.file import load, load_label
from tests.conftest import COLUMNS, DEMO, MODELS, REPOSITORY, write_shard
from tests.fake_engine import FakeEngine

COMMANDS = [
    "run",
    "plan",
    "report",
    "label",
    "train",
    "evaluate",
    "calibrate",
    "clean",
    "verify",
    "doctor",
    "init",
    "submit",
    "status",
    "logs",
    "stop",
    "list",
]


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "routelmt_batch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_has_an_example(routelmt, command):
    answer = routelmt(*command, "--help")
    assert answer.returncode == 0
    assert "Example: routelmt-batch" in answer.stdout


def test_help_loads_nothing_heavy():
    code = (
        "import sys, contextlib, io\n"
        "from routelmt_batch.cli.main import app\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    app(['--help'], standalone_mode=False)\n"
        "print([n for n in ('torch', 'ray', 'vllm', 'transformers', 'pyarrow', 'pandas') if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_help_comes_at_once():
    # The promise is a second; the fastest of three, so that a busy machine does not break it.
    def seconds() -> float:
        started = time.perf_counter()
        process("--help")
        return time.perf_counter() - started

    assert min(seconds() for _ in range(3)) < 1


def test_version():
    assert process("--version").stdout.strip() == f"routelmt-batch {__version__}"


def test_init_writes_a_spec_once(routelmt, tmp_path):
    assert routelmt("init", "my.yaml", cwd=tmp_path).returncode == 0
    assert (tmp_path / "my.yaml").read_text().startswith("# A job for routelmt-batch")
    again = routelmt("init", "my.yaml", cwd=tmp_path)
    assert again.returncode == 2 and "already exists" in again.stderr


@pytest.mark.parametrize(("kind", "read"), [("run", load), ("label", load_label), ("train", load_train_spec)])
def test_init_writes_a_valid_spec_of_each_kind_and_a_missing_one_names_it(invoke, tmp_path, kind, read):
    path = tmp_path / "spec.yaml"
    answer = invoke(kind, path)
    assert f"no such spec file; `routelmt-batch init --kind {kind}` writes one" in answer.stderr
    assert f"then: routelmt-batch {kind} {path}" in invoke("init", "--kind", kind, path).stdout
    read(path)
    # Every key that is commented out is known, and its value is valid.
    keys = re.sub(r"(?m)^( *)# (?=[ a-z_]+:( |$))", r"\1", path.read_text())
    assert keys != path.read_text()
    path.write_text(keys)
    read(path)


def test_a_dry_run_checks_all_and_writes_nothing(routelmt, tmp_path):
    answer = routelmt("run", str(DEMO / "job.yaml"), "--dry-run", "--output", str(tmp_path / "out"))
    assert answer.returncode == 0
    assert "272 rows in 6 shards" in answer.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "no such spec file"),
        (["run", "{spec}", "--budget", "1.01"], "less than or equal to 1"),
        (["run", "{spec}", "--set", "budget.fractoin=1"], "did you mean 'fraction'?"),
        (["run", "{spec}", "--set", "models.small.source=/nowhere"], "no such folder"),
        (["run", "{spec}", "--set", "input.uri=/nowhere"], "no such folder or file"),
        (["run", "{spec}", "--set", "input.columns.source=sauce"], "did you mean 'source'?"),
        (["run", "{spec}", "--shards", "zzz"], "matches none of 6 shards"),
        (["run", "{spec}", "--output", "{full}"], "not a job's folder"),
        (["plan", "{spec}", "--budget", "x"], "give a number between 0 and 1"),
        (["report", "{full}"], "no job there"),
        (["submit", "{spec}", "--budget", "1.01"], "less than or equal to 1"),
        (["submit", "{spec}"], "give the URL of the cluster's dashboard, such as http://HEAD:8265"),
        (["run"], "Missing argument"),
        (["run", "{spec}", "--limit", "0"], "Invalid value for '--limit'"),
        (["evaluate", "x.parquet", "--out", "o", "--seed=-3"], "Invalid value for '--seed'"),
        (["frobnicate"], "No such command"),
    ],
)
def test_wrong_usage_ends_with_two_and_a_message(routelmt, tmp_path, arguments, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("x")
    names = {"spec": str(DEMO / "job.yaml"), "full": str(tmp_path / "full")}
    answer = routelmt(*(argument.format(**names) for argument in arguments), cwd=tmp_path)
    assert answer.returncode == 2, answer.stderr
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "runs").exists()


def test_names_are_shown_as_they_are(routelmt, tmp_path, make_spec, corpus):
    (corpus / "x[").mkdir()
    (corpus / "x[" / "bold].parquet").write_bytes(b"rubbish")
    answer = routelmt("run", str(make_spec()), "--dry-run")
    assert answer.returncode == 0, answer.stderr
    assert "x[/bold].parquet" in answer.stdout


def test_a_dry_run_checks_the_job_that_is_there(routelmt, tmp_path, make_spec):
    from rich.console import Console

    from routelmt_batch.job import flow
    from routelmt_batch.progress import Bars

    spec = make_spec()
    engine = FakeEngine(tmp_path / "log")
    flow.run(load(spec), flow.Options(), Bars(Console(quiet=True), quiet=True), engine.opened)
    assert "finished" in routelmt("run", str(spec), "--dry-run").stdout
    answer = routelmt("run", str(spec), "--dry-run", "--budget", "0.9")
    assert answer.returncode == 2 and "frozen at budget.fraction 0.3" in answer.stderr


def test_rows_with_the_text_of_another_are_not_left_over_in_the_progress(make_spec, tmp_path):
    from routelmt_batch.job import flow
    from routelmt_batch.progress import Bars
    from routelmt_batch.store.folder import Folder

    flow.plan(
        load(make_spec(input__fold="exact")), flow.Options(), Bars.none(), FakeEngine(tmp_path / "log").opened
    )
    done, calls = flow.progress(Folder.at(str(tmp_path / "out")))["score"]
    assert done == calls < 71


def test_report_tells_where_an_unfinished_job_stands(routelmt, tmp_path, make_spec):
    from rich.console import Console

    from routelmt_batch.job import flow
    from routelmt_batch.progress import Bars

    spec = make_spec()
    engine = FakeEngine(tmp_path / "log")
    flow.plan(load(spec), flow.Options(), Bars(Console(quiet=True), quiet=True), engine.opened)
    answer = routelmt("report", str(tmp_path / "out"))
    assert answer.returncode == 0
    assert "score     71   71" in answer.stdout and "not running" in answer.stdout
    answer = routelmt("report", str(tmp_path / "out"), "--json")
    assert json.loads(answer.stdout) == {
        "finished": False,
        "running": False,
        "command": "run",
        "stages": {"score": [71, 71]},
    }
    flow.run(load(spec), flow.Options(), Bars(Console(quiet=True), quiet=True), engine.opened)
    answer = routelmt("report", str(tmp_path / "out"), "--json")
    assert json.loads(answer.stdout)["rows"] == 71
    assert "6 skipped" in routelmt("report", str(tmp_path / "out")).stdout


def label_spec(tmp_path: Path) -> Path:
    """Labels of one shard with twelve rows, one without a reference."""
    references = [f"small of {i}" for i in range(11)] + [None]
    write_shard(
        tmp_path / "labelled/a.parquet",
        [f"Row {i}." for i in range(12)],
        reference=pa.array(references, pa.string()),
    )
    spec = {
        "name": "labels",
        "input": {"uri": "labelled", "columns": COLUMNS},
        "output": {"uri": str(tmp_path / "labels")},
        "models": {
            name: {"source": str(MODELS / name), "max_model_len_tokens": 256, "max_output_tokens": 64}
            for name in ("small", "large")
        },
        "run": {"part_rows": 4},
    }
    (tmp_path / "label.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path / "label.yaml"


def test_report_tells_of_labels_stopped_and_finished(invoke, tmp_path, monkeypatch):
    from routelmt_batch.learning.labelling import label

    spec = label_spec(tmp_path)
    with monkeypatch.context() as stopped:
        stopped.setattr(label, "measure", Mock(side_effect=RoutelmtError("stopped")))
        invoke("label", spec)
    answer = invoke("report", tmp_path / "labels")
    lines = [line.split() for line in answer.stdout.splitlines()]
    for line in (["small", "12", "12"], ["large", "12", "12"], ["metric", "0", "22"], ["assemble", "0", "1"]):
        assert line in lines, answer.output
    assert "run the same `label` command again to continue" in answer.stdout
    assert invoke("label", spec).exit_code == 0
    answer = invoke("report", tmp_path / "labels")
    assert answer.exit_code == 0 and "12 in 1 shard, 11 labelled" in answer.stdout
    assert json.loads(invoke("report", tmp_path / "labels", "--json").stdout)["labelled"] == 11
    assert "these labels are finished; nothing to do" in invoke("label", spec).output


def test_labels_are_judged_by_their_failed_rows_alone(invoke, tmp_path, fake_engine):
    """One row of twelve has no reference, which is no failure; one fails."""
    fake_engine.fails = lambda label, row: "engine_error" if label == "large" and row["row"] == 3 else ""
    given = (label_spec(tmp_path), "--set", "run.max_failed_fraction=0.5")
    below, above = "failed>0.0833333", "failed>0.0833334"  # 1/12 = 0.08333333...
    answer = invoke("label", *given, "--fail-if", below, "--fail-if", above)
    assert answer.exit_code == 4, answer.output
    assert f"--fail-if {below}: it is 0.08333" in answer.stderr and above not in answer.stderr
    report = json.loads((tmp_path / "labels/reports/job.json").read_text())
    assert report["unlabelled"] == {"large_engine_error": 1, "no_reference": 1}
    assert [(one["condition"], one["holds"]) for one in report["fail_if"]] == [(below, True), (above, False)]
    assert f"{below}: it is" in invoke("report", tmp_path / "labels").stdout
    again = invoke("label", *given, "--fail-if", above)
    assert again.exit_code == 3 and "nothing to do" in again.output, "finished labels are judged anew"


@pytest.mark.parametrize(("condition", "lacks"), [("psi>0.2", "scores"), ("unused_budget>0.1", "budget")])
def test_labels_have_no_other_condition(invoke, tmp_path, condition, lacks):
    answer = invoke("label", label_spec(tmp_path), "--fail-if", condition)
    assert answer.exit_code == 2
    assert f"--fail-if {condition}: labels have no {lacks}; give failed>NUMBER" in answer.stderr
    assert not (tmp_path / "labels").exists()


def test_rows_are_of_the_page_alone(invoke):
    answer = invoke("report", "out", "--rows", "3")
    assert isinstance(answer.exception, UsageError) and "needs --html" in str(answer.exception)


@pytest.mark.slow
def test_report_writes_the_page_and_compares(routelmt, tmp_path, make_spec):
    from rich.console import Console

    from routelmt_batch.job import flow
    from routelmt_batch.progress import Bars
    from routelmt_batch.spec.file import load
    from tests.fake_engine import FakeEngine

    out, other = tmp_path / "out", tmp_path / "other"
    answer = routelmt("report", str(out), "--html")
    assert answer.returncode == 2 and f"{out}: no finished job there" in answer.stderr
    for folder, budget in ((out, "0.5"), (other, "0.3")):
        spec = load(make_spec(output__uri=str(folder), budget__fraction=budget))
        engine = FakeEngine(tmp_path / f"{folder.name}.log")
        flow.run(spec, flow.Options(), Bars(Console(quiet=True), quiet=True), engine.opened)
    page = out / "reports/index.html"
    page.unlink()
    answer = routelmt("report", str(out), "--html", "--rows", "0")
    assert answer.stdout.strip() == str(page) and "I saw a" not in page.read_text()
    answer = routelmt("report", str(out), "--against", str(other), "--html")
    assert (
        answer.returncode == 0
        and "I saw a" in page.read_text()
        and "were routed differently" in page.read_text()
    )
    answer = routelmt("report", str(out), "--against", str(other))
    unwrapped = "".join(answer.stdout.split())
    assert f"thisjob{out}" in unwrapped and f"theother{other}" in unwrapped
    assert "routed differently   13 of 71 rows in both: 13 small to large" in answer.stdout
    compared = json.loads(routelmt("report", str(out), "--against", str(other), "--json").stdout)
    assert compared["settings"]["budget.fraction"] == ["0.5", "0.3"] and compared["routed"]["different"] == 13
    assert "I saw a" not in json.dumps(compared)


def test_an_address_where_nothing_answers_is_told_at_once(tmp_path, make_spec):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    answer = process("run", str(make_spec()), "--address", address)
    assert answer.returncode == 2, answer.stderr
    assert f"--address {address}: nothing answers there" in answer.stderr
    assert time.monotonic() - started < 30


def test_corpus_text_stays_out_of_messages(routelmt, tmp_path, make_spec, corpus):
    write_shard(corpus / "z.parquet", ["SECRETWORD " * 5])
    (corpus / "y.parquet").write_bytes((corpus / "z.parquet").read_bytes()[:-9])
    answer = routelmt("run", str(make_spec()), "--dry-run")
    assert "y.parquet" in answer.stdout
    assert "SECRETWORD" not in answer.stdout + answer.stderr


def test_what_the_system_refuses_is_told_without_a_traceback(routelmt, tmp_path):
    (tmp_path / "file").write_text("x")
    answer = routelmt("init", str(tmp_path / "file" / "job.yaml"))
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ") and "Not a directory" in answer.stderr


@pytest.mark.slow
def test_doctor_says_what_is_fine(routelmt):
    answer = routelmt("doctor", cwd=REPOSITORY)
    assert answer.returncode in (0, 1)
    for word in ("Python", "ray", "vLLM", "torch", "memory", "disk"):
        assert word in answer.stdout


def planned(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out/reports/job.json").read_text())["budget"]


def test_run_takes_a_threshold_and_a_cap(invoke, make_spec, tmp_path):
    answer = invoke("run", make_spec(), "--threshold", "-1", "--cap", "0.2")
    assert answer.exit_code == 0, answer.output
    budget = planned(tmp_path)
    assert (budget["threshold"], budget["cap"], budget["planned"]) == (-1, "0.2", 13)
    assert budget["reached"] > 13
    assert (budget["reached_fraction"], budget["realised"]) == (budget["reached"] / 65, 13 / 65)
    assert (
        f"-1: {budget['reached']} of 65 rows with a gain reach it, {budget['reached'] / 65:.4f}"
        in answer.stdout
    )
    assert "13 planned, 13 used; 0.2000 of those with a gain" in answer.stdout
    assert "the cap of 13 rows was reached" in answer.stdout


def test_a_router_is_calibrated_and_then_routes_by_its_threshold(invoke, make_spec, corpus, tmp_path):
    router, table = tmp_path / "router", tmp_path / "held-out.parquet"
    shutil.copytree(MODELS / "router", router)
    write_shard(table, [f"Held out {i}." for i in range(40)])
    renamed = pq.read_table(table).rename_columns(["source", "source_lang", "target_lang", "id"])
    pq.write_table(renamed, table)
    answer = invoke("calibrate", router, table, "--fraction", "0.25", "--dtype", "float32")
    assert answer.exit_code == 0, answer.output
    assert "0.25" in answer.stdout and "realised in 1,000,000 rows (95%)" in answer.stdout
    spec = make_spec(router__source=str(router))
    answer = invoke("run", spec, "--threshold", "calibrated", "--budget", "0.25")
    assert answer.exit_code == 0, answer.output
    assert planned(tmp_path)["calibrated"]["rows"] == 40
    assert "for 0.25 on 40 held-out rows" in answer.stdout


@pytest.mark.parametrize("command", ["run", "plan"])
def test_directions_without_training_are_told_before_the_first_row_is_scored(
    invoke, make_spec, tmp_path, monkeypatch, corpus, command
):
    write_shard(corpus / "z.parquet", ["Un."], to=pa.array(["fr"]))
    with monkeypatch.context() as stopped:
        stopped.setattr(FakeEngine, "run", Mock(side_effect=RoutelmtError("stopped")))
        answer = invoke(command, make_spec())
    assert "warning: router: not trained on en-fr; its scores there are a guess" in answer.stderr
    assert not (tmp_path / "sent.log").exists()


def test_a_dry_run_tells_of_a_direction_without_training(invoke, make_spec):
    answer = invoke("run", make_spec(input__target_lang="fr", input__source_lang="en"), "--dry-run")
    assert answer.exit_code == 0, answer.output
    assert "router: not trained on en-fr" in answer.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{spec}", "--cap", "0.2"], "cap needs threshold"),
        (["run", "{spec}", "--threshold", "high"], "give a finite score, or `calibrated`"),
        (["run", "{spec}", "--threshold", "nan"], "  budget.threshold: 'nan': give a finite score, or `calibrated`"),
        (["run", "{spec}", "--threshold", "calibrated", "--set", "router={{kind: length}}"], "only a router folder"),
        (["run", "{spec}", "--threshold", "1", "--cap", "2"], "less than or equal to 1"),
        (["run", "{spec}", "--threshold", "calibrated", "--budget", "0.77"], "has no threshold for fraction 0.77"),
        (["calibrate", "{router}", "x.parquet", "--dtype", "float8"], "'float8' is not one of"),
        (["calibrate", "{router}", "x.parquet", "--fraction", "2"], "--fraction 2: give a number"),
        (["calibrate", "{router}", "x.parquet", "--fraction", "0.0"], "--fraction 0: no row goes to the large"),
        (["evaluate", "x.parquet", "--out", "y", "--dtype", "float8"], "'float8' is not one of"),
    ],
)  # fmt: skip
def test_wrong_usage_of_thresholds_is_told(invoke, make_spec, arguments, message):
    names = {"spec": str(make_spec()), "router": str(MODELS / "router")}
    answer = invoke(*(argument.format(**names) for argument in arguments))
    assert answer.exit_code != 0
    assert message in answer.output + str(answer.exception)
