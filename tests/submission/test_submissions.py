"""What a submission is called, asks for and ended with; nothing is submitted."""

import hashlib
import shlex
from datetime import UTC, datetime

import pytest
from ray.job_submission import JobDetails

from routelmt_batch.spec_file import load
from routelmt_batch.submission.submissions import Submission, submission_id
from routelmt_batch.submission.submit import Order
from tests.conftest import DEMO

METADATA = {
    "routelmt_batch": "0.1.0",
    "name": "nightly",
    "output": "/corpora/out/1",
    "attempt": "2",
    "order": "0123abcd",
    "submitted_by": "ada@host",
}


def details(status: str = "RUNNING", **told: object) -> JobDetails:
    return JobDetails(
        type="SUBMISSION", status=status, entrypoint="x", **{"submission_id": "routelmt-1", "metadata": METADATA} | told
    )  # fmt: skip


def test_an_id_is_the_outputs_and_the_attempts():
    sha = hashlib.sha256(b"/corpora/out/2026-11-22").hexdigest()
    assert submission_id("/corpora/out/2026-11-22", 1) == f"routelmt-2026-11-22-{sha[:8]}-1"
    assert submission_id("/corpora/out/2026-11-22", 12).endswith("-12")
    assert submission_id("/elsewhere/2026-11-22", 1) != submission_id("/corpora/out/2026-11-22", 1)


@pytest.mark.parametrize("output", ["/out/Übung 1_a", "/", "/out/夜", "/a/b.c/"])
def test_an_id_is_fit_for_a_url(output):
    assert set(submission_id(output, 1)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_a_submission_is_read_as_ray_tells_of_it():
    found = Submission.read(details(start_time=1_795_340_938_000, end_time=1_795_340_998_500))
    assert found == Submission(
        id="routelmt-1",
        name="nightly",
        output="/corpora/out/1",
        attempt=2,
        order="0123abcd",
        submitted_by="ada@host",
        status="RUNNING",
        driver_exit_code=None,
        message="",
        started=datetime(2026, 11, 22, 9, 48, 58, tzinfo=UTC),
        ended=datetime(2026, 11, 22, 9, 49, 58, 500_000, tzinfo=UTC),
    )
    assert found.seconds == 60.5


@pytest.mark.parametrize("other", [{"metadata": None}, {"metadata": {"name": "x"}}, {"submission_id": None}])
def test_jobs_of_other_tools_are_passed_over(other):
    assert Submission.read(details(**other)) is None


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("PENDING", None, None),
        ("RUNNING", None, None),
        ("SUCCEEDED", 0, 0),
        ("FAILED", 3, 3),  # done, but rows failed
        ("FAILED", -9, 137),  # kill -9, as a shell has it
        ("FAILED", None, 1),  # Ray could not start it
        ("STOPPED", None, 143),
    ],
)
def test_it_ends_as_run_would_have(status, driver, code):
    found = Submission.read(details(status, driver_exit_code=driver))
    assert found and found.exit_code == code
    assert found.live == (code is None)


def test_options_reach_the_command_whole():
    order = Order(load(DEMO / "job.yaml"), ("--shards", "a b*/$x.parquet"), "/opt/my env/python")
    assert shlex.split(order.entrypoint) == [
        "exec", "/opt/my env/python", "-m", "routelmt_batch", "run", "job.yaml", "--address", "auto",
        "--shards", "a b*/$x.parquet",
    ]  # fmt: skip


def test_a_spec_that_travelled_is_the_one_that_was_submitted(tmp_path):
    # From another folder, as on the cluster: paths are absolute already, hub names stay hub names.
    for spec in (DEMO / "job.yaml", DEMO / "guarded.yaml", DEMO.parent / "nightly.yaml"):
        submitted = load(spec, budget_fraction="0.25", output_uri=str(tmp_path / "out"))
        (tmp_path / "travelled").mkdir(exist_ok=True)
        (tmp_path / "travelled/job.yaml").write_text(submitted.dump(), encoding="utf8")
        assert load(tmp_path / "travelled/job.yaml") == submitted


def test_a_link_in_an_absolute_path_travels_as_it_is(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "corpora").symlink_to(tmp_path / "here")
    router = str(tmp_path / "corpora" / "router")
    assert load(DEMO / "job.yaml", [f"router.source={router}"]).router.source == router


def test_another_budget_or_option_is_another_order():
    spec = load(DEMO / "job.yaml", budget_fraction="0.2")
    orders = [Order(spec), Order(load(DEMO / "job.yaml")), Order(spec, ("--limit", "5"))]
    assert len({order.digest for order in orders}) == 3
    assert Order(load(DEMO / "job.yaml", budget_fraction="0.2")).digest == orders[0].digest
