"""A real Ray head: a job is submitted over HTTP, refused twice, stopped, submitted again, and resumed."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from routelmt_batch.errors import UsageError
from routelmt_batch.submission.cluster import Cluster
from tests import oracle
from tests.submission.head import Head, ended, running_head
from tests.waiting import free_ports, wait_for

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as found:
        yield found


@pytest.fixture
def spec(make_spec) -> Path:
    """Scores come at once and are committed; the large model's translations are, before the small one starts."""
    return make_spec(
        router={"kind": "random"}, run={"part_rows": 8, "pools": "sequential"}, checks={"enabled": False}
    )


def ledger(output: Path, stage: str) -> list[dict]:
    return [line for line in oracle.log(output) if line.get("stage") == stage]


def standing(head: Head, job: object) -> dict:
    code, told, errors = head.do("status", job, "--json")
    assert code == 0, errors
    return json.loads(told)


def test_a_job_is_submitted_stopped_submitted_again_and_resumed(head, spec, corpus, tmp_path):
    output = tmp_path / "out"

    # Two at one moment: one job, whichever was first.
    both = [head.start("submit", spec), head.start("submit", spec)]
    answers = sorted(ended(one) for one in both)
    assert [code for code, *_ in answers] == [0, 2], answers
    first = answers[0][1].strip()
    assert first.startswith("routelmt-out-") and first.endswith("-1")
    assert f"routelmt-batch logs {first} --follow" in answers[0][2]
    assert f"{first} uses this output" in answers[1][2]

    # A later one: refused, attached, refused for its other budget.
    code, told, errors = head.do("submit", spec)
    assert (code, told) == (2, "") and f"logs {first} --follow" in errors
    assert head.do("submit", spec, "--attach")[:2] == (0, f"{first}\n")
    code, _, errors = head.do("submit", spec, "--attach", "--budget", "0.5")
    assert code == 2 and "with another command, spec or options" in errors

    # Stopped with scores and some translations committed.
    wait_for(lambda: ledger(output, "translations"), "translations", within_s=300)
    running = standing(head, output)
    assert (running["id"], running["status"], running["exit_code"]) == (first, "RUNNING", None)
    assert running["stages"]["score"] == [71, 71]
    code, told, errors = head.do("stop", output)
    assert (code, told) == (0, f"{first}: STOPPED; submit it again to continue\n"), errors
    assert "stopped by SIGTERM" in head.do("logs", first)[1]
    committed = oracle.digests(output)
    assert not (output / "_SUCCESS").exists()

    # Gone on with: what was committed stays, each row is translated once.
    code, told, errors = head.do("submit", spec, "--wait", "--address", head.url, RAY_API_SERVER_ADDRESS="")
    assert code == 0, told + errors
    second = told.splitlines()[0]
    assert second == first[:-1] + "2"
    assert "assemble: 71/71 rows" in told and f"{second}: SUCCEEDED" in errors
    assert {part: oracle.digests(output)[part] for part in committed} == committed
    rows = oracle.check(output, corpus, "0.3")
    translated = sum(span[0] for line in ledger(output, "translations") for span in line["spans"].values())
    assert translated == sum(row["status"] != "skipped" for row in rows.values()) == 65

    listed = json.loads(head.do("list", "--json")[1])
    assert [(one["id"], one["status"], one["attempt"], one["exit_code"]) for one in listed] == [
        (second, "SUCCEEDED", 2, 0), (first, "STOPPED", 1, 143),
    ]  # fmt: skip
    assert {one["output"] for one in listed} == {str(output)}


def test_a_plan_is_submitted_and_says_how_to_go_on(head, spec, tmp_path):
    output = tmp_path / "planned"
    code, told, errors = head.do("submit", spec, "--plan", "--output", output, "--wait", "--limit", "30")
    assert code == 0, told + errors
    assert "Next: submit it again, with --budget P instead of --plan" in told
    [last] = [json.loads(line) for line in told.splitlines() if line.startswith('{"job"')]
    assert (last["command"], len(last["budgets"])) == ("plan", 20)
    found = standing(head, output)
    assert (found["command"], found["status"], found["stages"]) == ("plan", "SUCCEEDED", {"score": [30, 30]})
    assert re.search(r"routelmt-planned-\w+-1 +plan +SUCCEEDED", head.do("list")[1])


def test_waiting_ends_as_the_job_does(head, make_spec, tmp_path):
    spec = make_spec(models__small__source="/nowhere/small")
    code, told, errors = head.do("submit", spec, "--output", tmp_path / "wrong", "--wait")
    assert code == 2
    assert "models.small.source /nowhere/small: no such folder" in told
    assert "FAILED" in errors
    told = head.do("status", tmp_path / "wrong")[1]
    assert re.search(r"status +FAILED", told) and re.search(r"exit code +2", told)
    assert re.search(r"message +models.small.source /nowhere/small: no such folder", told)
    assert re.search(r"routelmt-wrong-\w+-1 +run +FAILED 2", head.do("list")[1])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"RAY_AUTH_TOKEN_PATH": ""}, "the cluster requires a token, and none is set here"),
        ({"RAY_AUTH_TOKEN": "not the head's"}, "the cluster rejected the token that is set here"),
    ],
)
def test_without_the_token_nothing_is_submitted_and_what_to_do_is_told(head, spec, environment, message):
    code, told, errors = head.do("submit", spec, **environment)
    assert (code, told) == (2, "")
    assert message in errors
    assert "Run `ray get-auth-token` on the head and put its token into RAY_AUTH_TOKEN, the file" in errors


def test_an_unknown_job_is_told(head):
    code, _, errors = head.do("stop", "routelmt-nowhere-1")
    assert code == 2 and "routelmt-nowhere-1: neither a submission's id nor the output of one" in errors


def test_where_nothing_answers_is_told_at_once(head):
    started = time.monotonic()
    code, _, errors = head.do("list", "--address", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert code == 2 and "no Ray dashboard answers there ([Errno 111] Connection refused)" in errors
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "auto", "ray://head:10001"])
def test_an_address_is_a_url(address):
    with pytest.raises(UsageError, match=f"--address {address}: give the URL of the cluster's dashboard"):
        Cluster(address)
