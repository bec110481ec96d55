"""`verify` names each damage, what is lost and what to do; and no command stumbles over it.

What a job looks like after a mend is compared with the job before, and checked by the oracle.
"""

import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from routelmt_batch.errors import RoutelmtError
from routelmt_batch.job import flow
from routelmt_batch.learning.labelling.label import label
from routelmt_batch.progress import Bars
from routelmt_batch.rows import SCORES
from routelmt_batch.spec.file import load, load_label
from routelmt_batch.stages.passes import part_writer
from routelmt_batch.store import ledger as ledgers
from routelmt_batch.store import log as logs
from routelmt_batch.store.folder import Folder
from routelmt_batch.tokens import load_tokenizer
from tests import oracle
from tests.conftest import COLUMNS, MODELS, sampled, with_references, write_shard
from tests.fake_engine import FakeEngine
from tests.job.test_resume import run_armed

BARS = Bars(Console(quiet=True), quiet=True)
A, SUB = "a.parquet", "sub/b.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    """A finished job with a page, the same job stopped among its translations, and finished labels; each once."""
    root = tmp_path_factory.mktemp("made")
    corpus, engine = root / "corpus", FakeEngine(root / "sent.log")
    write_shard(corpus / A, [f"Row {i}." if i % 9 else None for i in range(40)], row_group_size=17)
    write_shard(corpus / SUB, [f"Sub {i}." for i in range(20)])
    pool = {"max_model_len_tokens": 256}
    small, large = (
        {"source": str(MODELS / name), "max_output_tokens": 64, **pool} for name in ("small", "large")
    )
    spec = {
        "name": "test",
        "input": {"uri": str(corpus), "columns": dict(COLUMNS)},
        "output": {"uri": str(root / "finished")},
        "models": {"small": small, "large": large},
        "run": {"part_rows": 8},
    }
    job = {**spec, "router": {"source": str(MODELS / "router"), **pool}, "budget": {"fraction": 0.3}}
    labels = {
        **spec,
        "input": {**spec["input"], "columns": {**COLUMNS, "reference": with_references(corpus)}},
    }
    for name, value in (("job", job), ("label", labels)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump(value))
    path = root / "job.yaml"
    flow.run(load(path), flow.Options(), BARS, engine.opened)
    with engine.stopping(lambda label, row: (label, row["shard"]) == ("small", SUB)):
        flow.run(load(path, output_uri=str(root / "half")), flow.Options(), BARS, engine.opened)
    label_spec = load_label(root / "label.yaml", output_uri=str(root / "labels"))
    label(label_spec, flow.Options(), BARS, engine.opened)
    return SimpleNamespace(root=root, corpus=corpus, spec=path, labels=root / "label.yaml")


@pytest.fixture
def a_copy(made, tmp_path) -> Callable[[str], Path]:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(made.root / name, tmp_path / name))

    return copied


@pytest.fixture
def out(a_copy) -> Path:
    """The finished job."""
    return a_copy("finished")


def contents(output: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def found(invoke, output, *options) -> tuple[int, dict]:
    answer = invoke("verify", output, "--json", *options)
    state = json.loads(answer.stdout)
    assert answer.exit_code == int(state["damaged"])
    return answer.exit_code, state


def only(state: dict, output: Path) -> tuple[str, str, str]:
    """The one finding: the path below the output, what is wrong, what to do."""
    (finding,) = [finding for finding in state["findings"] if finding["damage"]]
    return str(Path(finding["where"]).relative_to(output)), finding["wrong"], finding["remedy"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "command", "finished"),
    [("finished", "run", True), ("half", "run", False), ("labels", "label", True)],
)
def test_of_a_whole_job_nothing_is_said_and_nothing_changes(invoke, a_copy, name, command, finished):
    output = a_copy(name)
    before = contents(output)
    for options in ([], ["--rebuild"]):
        code, state = found(invoke, output, *options)
        assert (code, state["command"], state["finished"]) == (0, command, finished)
        assert state["findings"] == state["mended"] == []
        assert state["checked"]["parts"] == len(oracle.digests(output))
        assert state["checked"]["files of the log"] == len(list((output / "_job/log").iterdir()))
    assert invoke("verify", output).stdout.splitlines()[-1] == "whole"
    assert contents(output) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    "place",
    [
        *(
            f"{file}.publish.{side}:1"
            for file in ("spec", "manifest", "plan")
            for side in ("before", "after")
        ),
        *(f"{file}.publish.after:2" for file in ("scores", "translations", "output", "report")),
        *("output.ledger.after:2", "report.publish.after:5", "success.publish.before:1"),
    ],
)
def test_a_job_that_was_killed_is_not_damaged(invoke, make_spec, tmp_path, place):
    spec, output = make_spec(), tmp_path / "out"
    for name in ("small", "large", "router"):
        load_tokenizer(str(MODELS / name))  # else each forked process loads it
    assert run_armed(spec, tmp_path / "killed.log", place) == -signal.SIGKILL
    code, state = found(invoke, output)
    assert code == 0 and not state["finished"] and not state["running"]


def test_where_there_is_no_job_it_ends_with_two(invoke, tmp_path):
    answer = invoke("verify", tmp_path)
    assert answer.exception.exit_code == 2 and f"{tmp_path}: no job there" in str(answer.exception)


def part(output: Path, stage: str = "translations") -> Path:
    return oracle.committed(output, stage)[0]


# What is damaged of the finished job, how it is told, and what to do.
DAMAGES = {
    "data changed": (f"data/{A}", flip, "other contents", "rebuild"),
    "data cut": (f"data/{A}", lambda path: path.write_bytes(b"PAR1"), "has 4 bytes; ", "rebuild"),
    "data gone": (f"data/{A}", Path.unlink, "is missing", "run"),
    "report empty": (
        f"reports/{SUB}.json",
        lambda path: path.write_text(""),
        "is empty or damaged",
        "rebuild",
    ),
    "report gone": (f"reports/{SUB}.json", Path.unlink, "is missing", "run"),
    "report of another": (
        f"reports/{SUB}.json",
        lambda path: path.write_text(path.read_text().replace('"rows": 20', '"rows": 21')),
        "is about another output shard",
        "rebuild",
    ),
    "job report cut": ("reports/job.json", lambda path: path.write_text('{"name": 1'), "is empty", "rebuild"),
    "job report gone": ("reports/job.json", Path.unlink, "is missing", "run"),
    "page cut": (
        "reports/index.html",
        lambda path: path.write_text("<html>"),
        "is empty or damaged",
        "rebuild",
    ),
    "success empty": ("_SUCCESS", lambda path: path.write_text(""), "is empty or damaged", "rebuild"),
    "success of another": (
        "_SUCCESS",
        lambda path: path.write_text(path.read_text().replace('"rows": 20', '"rows": 21')),
        "does not name the output shards that the log names",
        "rebuild",
    ),
    "plan gone": ("_job/plan/plan.json", Path.unlink, "is missing", "run"),
    "plan changed": ("_job/plan/plan.json", flip, "other contents", "run"),
    "spec empty": ("_job/spec.yaml", lambda path: path.write_text(""), "holds no spec", "run"),
    "spec gone": ("_job/spec.yaml", Path.unlink, "is missing", "run"),
    "manifest gone": ("_job/manifest.json", Path.unlink, "is missing", "start anew"),
    "manifest empty": (
        "_job/manifest.json",
        lambda path: path.write_text(""),
        "is empty or damaged",
        "start anew",
    ),
    "manifest changed": (
        "_job/manifest.json",
        lambda path: path.write_text(path.read_text().replace('"limit": null', '"limit": 21')),
        "is not the one that the log names",
        "start anew",
    ),
    "segment changed": ("_job/log/0000000003.jsonl", flip, "its checksum does not match", "start anew"),
    "segment gone": ("_job/log/0000000003.jsonl", Path.unlink, "is missing", "start anew"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_and_what_can_be_mended_is(invoke, made, out, damage):
    name, do, wrong, remedy = DAMAGES[damage]
    before = {
        path.relative_to(out): path.read_bytes()
        for path in [*out.glob("data/**/*.parquet"), out / "_SUCCESS"]
    }
    do(out / name)
    damaged = contents(out)
    code, state = found(invoke, out)
    where, told, what = only(state, out)
    assert (code, where, what) == (1, name, remedy) and wrong in told
    answer = invoke("verify", out)
    assert f"damaged: {out / name} {told}. Lost: " in answer.stdout and answer.exit_code == 1
    assert contents(out) == damaged
    code, state = found(invoke, out, "--rebuild")
    assert bool(state["mended"]) == (remedy == "rebuild")
    if remedy == "start anew":
        assert code == 1 and contents(out) == damaged
        return
    assert code == (name not in ("_SUCCESS", "reports/index.html")), "what was removed is still missing"
    assert invoke("run", made.spec, "--output", out).exit_code == 0
    assert found(invoke, out)[0] == 0
    oracle.check(out, made.corpus, "0.3")
    assert {path: (out / path).read_bytes() for path in before} == before


@pytest.mark.parametrize("do", [Path.unlink, flip], ids=["gone", "changed"])
def test_a_damaged_list_of_shards_is_told(invoke, made, out, do):
    (path,) = (out / "_job/shards").iterdir()
    do(path)
    code, state = found(invoke, out)
    where, told, remedy = only(state, out)
    assert (code, where, remedy) == (1, "_job/manifest.json", "start anew") and str(path.parent) in told
    answer = invoke("run", made.spec, "--output", out)
    assert answer.exit_code == 2 and str(path) in answer.stderr and "start a new job" in answer.stderr


@pytest.mark.parametrize("name", ["finished", "half"])
@pytest.mark.parametrize("how", ["gone", "changed", "cut"])
def test_a_damaged_part_is_told(invoke, made, a_copy, name, how):
    output = a_copy(name)
    path = part(output)
    rows = pq.read_metadata(path).num_rows
    {"gone": Path.unlink, "changed": flip, "cut": lambda path: path.write_bytes(b"PAR1")}[how](path)
    for options in ([], ["--rebuild"]):
        _, state = found(invoke, output, *options)
        where, _, remedy = only(state, output)
        assert where == str(path.relative_to(output))
        assert remedy == ("restore" if name == "finished" else "start anew")
        assert f"{rows} rows of translations" in state["findings"][0]["lost"] and state["mended"] == []


def test_much_damage_is_mended_together(invoke, made, out):
    for name in ("_SUCCESS", "reports/index.html"):
        (out / name).write_bytes(b"")
    code, state = found(invoke, out, "--rebuild")
    assert code == 0 and len(state["mended"]) == 2, "both are written again"
    names = ("_SUCCESS", "reports/index.html", "reports/job.json", f"reports/{A}.json", f"data/{SUB}")
    for name in (*names, "_job/spec.yaml", "_job/plan/plan.json"):
        (out / name).write_bytes(b"")
    code, state = found(invoke, out)
    remedies = {str(Path(each["where"]).relative_to(out)): each["remedy"] for each in state["findings"]}
    assert remedies == {
        **dict.fromkeys(names, "rebuild"),
        **dict.fromkeys(("reports/index.html", "_job/spec.yaml", "_job/plan/plan.json"), "run"),
    }
    assert len(found(invoke, out, "--rebuild")[1]["mended"]) == 4
    assert invoke("run", made.spec, "--output", out).exit_code == 0
    oracle.check(out, made.corpus, "0.3")
    assert [each["where"] for each in found(invoke, out)[1]["findings"]] == [str(out / "reports/index.html")]


def test_output_that_cannot_be_made_again_is_not_removed(invoke, out):
    part(out).unlink()
    flip(out / "data" / A)
    (out / "_SUCCESS").write_text("")
    before = contents(out)
    code, state = found(invoke, out, "--rebuild")
    assert code == 1 and state["mended"] == [] and contents(out) == before
    assert {finding["remedy"] for finding in state["findings"]} == {"restore"}


def test_a_cleaned_job_is_whole_and_its_success_can_be_written_again(invoke, out):
    assert invoke("clean", out).exit_code == 0
    code, state = found(invoke, out)
    assert code == 0 and state["findings"] == []
    before = (out / "_SUCCESS").read_bytes()
    (out / "_SUCCESS").unlink()
    assert only(found(invoke, out)[1], out) == ("_SUCCESS", "is missing", "rebuild")
    code, state = found(invoke, out, "--rebuild")
    assert code == 0 and len(state["mended"]) == 1 and (out / "_SUCCESS").read_bytes() == before
    flip(out / "data" / A)
    assert only(found(invoke, out, "--rebuild")[1], out)[::2] == (f"data/{A}", "restore")


def test_labels_are_checked_like_a_job(invoke, made, a_copy):
    output = a_copy("labels")
    for name in ("reports/job.json", "_SUCCESS", f"data/{SUB}"):
        flip(output / name) if name.startswith("data") else (output / name).write_text("")
    code, state = found(invoke, output, "--rebuild")
    assert code == 1 and len(state["mended"]) == 3
    assert invoke("label", made.labels, "--output", output).exit_code == 0
    assert found(invoke, output)[0] == 0
    oracle.check_report(output, "label")


def test_a_row_that_is_committed_twice_is_told(invoke, out):
    shard = pa.array([A] * 3, pa.string())
    nothing = pa.nulls(3)
    table = pa.table([shard, pa.array([6, 7, 39]), *[nothing] * 4], names=SCORES.schema.names)
    ledger = Folder.at(str(out)).ledger()
    with ledger.writing():
        ledger.commit(part_writer(ledger, SCORES)(table.cast(SCORES.schema)))
    _, state = found(invoke, out)
    told = {finding["wrong"] for finding in state["findings"]}
    # Rows 0 to 7 were committed as one part before; the new part's span covers all others.
    assert any(
        "has row" in wrong and f"of {A}, which another part of scores has, too" in wrong for wrong in told
    )
    assert "holds 63 rows of a job with 60" in told


def test_rows_that_the_job_does_not_have_are_told(invoke, out):
    table = pa.table([pa.array([SUB]), pa.array([20]), *[pa.nulls(1)] * 4], names=SCORES.schema.names)
    ledger = Folder.at(str(out)).ledger()
    with ledger.writing():
        ledger.commit(part_writer(ledger, SCORES)(table.cast(SCORES.schema)))
    assert f"has rows of {SUB} that the job does not have" in str(found(invoke, out)[1])


def test_what_a_crash_left_is_no_damage(invoke, out):
    stray = out / "_job/scores/part-000001-0123456789abcdef0123456789abcdef.parquet"
    stray.write_bytes(b"half")
    (out / "_job/scores/.DS_Store").write_bytes(b"a foreign file")
    code, state = found(invoke, out)
    (finding,) = state["findings"]
    assert code == 0 and not finding["damage"] and finding["where"] == str(stray.parent)
    assert finding["wrong"].startswith("holds 1 file that no record names")


def test_a_running_job_is_not_disturbed(invoke, out, monkeypatch):
    monkeypatch.setattr(ledgers, "SIGN_OF_LIFE_S", 0.2)
    monkeypatch.setattr(ledgers, "_GROUP_S", 0.05)
    (out / "_SUCCESS").write_text("")
    ledger = Folder.at(str(out)).ledger()
    with ledger.writing():
        ledger.take()
        answer = invoke("verify", out, "--rebuild")
        assert answer.exception.exit_code == 2 and "another run holds this job" in str(answer.exception)
        assert (out / "_SUCCESS").read_text() == ""
        assert found(invoke, out)[1]["running"]


@pytest.fixture
def compacted(out, monkeypatch) -> Path:
    """The finished job with a long log: its files 0 to 2, 3 to 5 and so on also as one, and 0 to 8."""
    monkeypatch.setattr(logs, "_TOGETHER", 3)
    ledger = Folder.at(str(out)).ledger()
    with ledger.writing():
        while ledger.log.next < 21:
            ledger.record("page", note=ledger.log.next)
    assert len(list((out / "_job/log").glob("*-*"))) >= 3
    return out


@pytest.mark.parametrize("how", ["changed", "empty", "other records"])
def test_a_damaged_compacted_segment_is_only_a_copy(invoke, made, compacted, how):
    copies = sorted((compacted / "_job/log").glob("*-*"))
    damaged = copies[-1]
    before = oracle.log(compacted)
    if how == "other records":
        *lines, _ = damaged.read_bytes().splitlines(keepends=True)
        body = b"".join(lines).replace(b'"note": ', b'"note": 1')
        assert body != b"".join(lines)
        damaged.write_bytes(body + json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n")
    else:
        flip(damaged) if how == "changed" else damaged.write_bytes(b"")
        assert invoke("run", made.spec, "--output", compacted).exit_code == 0, "the segments are whole"
        before = oracle.log(compacted)
    where, wrong, remedy = only(found(invoke, compacted)[1], compacted)
    assert (where, remedy) == (str(damaged.relative_to(compacted)), "rebuild")
    assert wrong == ("does not contain what its segments do" if how == "other records" else wrong)
    code, state = found(invoke, compacted, "--rebuild")
    assert code == 0 and state["mended"] == [f"{damaged}: removed; it only repeated other segments"]
    assert not damaged.exists() and oracle.log(compacted)[: len(before)] == before


def test_a_segment_that_a_compacted_one_has_too_is_told_but_nothing_is_lost(invoke, compacted):
    first, last = map(int, sorted((compacted / "_job/log").glob("*-*"))[-1].stem.split("-"))
    (compacted / f"_job/log/{last:010d}.jsonl").unlink()
    flip(compacted / f"_job/log/{first:010d}.jsonl")
    code, state = found(invoke, compacted)
    assert code == 1
    assert [finding["remedy"] for finding in state["findings"]] == ["restore"] * 2
    assert all(
        finding["lost"] == f"nothing: {first:010d}-{last:010d}.jsonl has its records, too"
        for finding in state["findings"]
    )
    assert invoke("report", compacted).exit_code == 0


def test_a_run_that_did_not_take_the_job_is_told(invoke, out):
    """A segment of a later epoch, with a checksum, that follows; but it does not begin with the epoch."""
    last = max((out / "_job/log").glob("*.jsonl"))
    header = json.loads(last.read_bytes().splitlines()[0])
    number = header["first"] + 1
    digest = json.loads(last.read_bytes().splitlines()[-1])["sha256"]
    header |= {"first": number, "last": number, "epoch": header["epoch"] + 1, "previous": digest}
    body = json.dumps(header).encode() + b"\n" + b'{"event": "alive"}\n'
    checksum = json.dumps({"sha256": hashlib.sha256(body).hexdigest()}).encode()
    last.with_name(f"{number:010d}.jsonl").write_bytes(body + checksum + b"\n")
    assert "which did not take the job" in only(found(invoke, out)[1], out)[1]


def test_a_lost_log_is_told_by_all(invoke, made, out):
    shutil.rmtree(out / "_job/log")
    code, state = found(invoke, out)
    assert code == 1 and only(state, out) == ("_job/log", "is missing", "start anew")
    answer = invoke("run", made.spec, "--output", out)
    assert answer.exit_code == 2 and "the job's log is missing" in answer.stderr


CONTROL = {
    "finished": [
        "_SUCCESS",
        "_job/manifest.json",
        "_job/plan/plan.json",
        "_job/spec.yaml",
        "reports/job.json",
        f"reports/{A}.json",
        f"data/{A}",
        "_job/log/0000000002.jsonl",
    ],
    "half": ["_job/manifest.json", "_job/plan/plan.json", "_job/spec.yaml", "_job/log/0000000002.jsonl"],
    "labels": ["_SUCCESS", "_job/manifest.json", "_job/spec.yaml", "reports/job.json"],
}
HOW = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"\xff\x00\xfe" * 50),
    "removed": Path.unlink,
}


def ended(answer, name: str, unfinished: bool = False) -> int:
    """A command's exit code; it may end with an error only in words that name the object."""
    text, code = answer.output, answer.exit_code
    if isinstance(answer.exception, RoutelmtError):
        text, code = str(answer.exception), answer.exception.exit_code
    else:
        assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
    assert "Traceback" not in text and "please report it" not in text
    # Without _SUCCESS a job is not finished, which is no damage.
    named = Path(name).name in text or (unfinished and re.search("no finished job|job is not finished", text))
    assert code == 0 or (code in (1, 2) and named), text
    return code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "name", "how"),
    sampled(
        ((state, name, how) for state, names in CONTROL.items() for name in names for how in HOW), every=3
    ),
)
def test_no_command_stumbles_over_a_damaged_file(invoke, made, a_copy, tmp_path, state, name, how):
    output = a_copy(state)
    progress = [invoke("report", output, *options).stdout for options in ([], ["--json"])]
    HOW[how](output / name)
    unfinished = not (output / "_SUCCESS").exists()
    for options, was in zip(([], ["--json"]), progress, strict=True):
        answer = invoke("report", output, *options)
        if ended(answer, name) == 0 and answer.stdout != was:
            assert how == "removed" or Path(name).name in answer.stderr, "other figures come with a reason"
    if state == "finished":
        ended(invoke("report", output, "--html"), name, unfinished)
    ended(invoke("verify", output), name)
    spare = Path(shutil.copytree(output, tmp_path / "spare"))
    assert ended(invoke("clean", spare), name, unfinished) == 2 or state != "half"
    command = ("label", made.labels) if state == "labels" else ("run", made.spec)
    ended(invoke(*command, "--output", output), name)
    ended(invoke("verify", output, "--rebuild"), name)
    if ended(invoke(*command, "--output", output), name):
        assert name in ("_job/manifest.json", "_job/log/0000000002.jsonl"), "all else can be made again"
        return
    assert found(invoke, output)[0] == 0
    if state != "labels":
        oracle.check(output, made.corpus, "0.3")
