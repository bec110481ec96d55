"""What a submission is called, asks for and ended with; nothing is submitted."""

import hashlib
import os
import shlex
from datetime import UTC, datetime

import pytest
import typer
from ray.job_submission import JobDetails

from routelmt_batch.cli.main import app
from routelmt_batch.cli.submission import _why
from routelmt_batch.errors import OutputError, RoutelmtError, UsageError
from routelmt_batch.learning.training.spec import load_train_spec
from routelmt_batch.spec.file import load, load_label
from routelmt_batch.submission import submit as submit_module
from routelmt_batch.submission.progress import Progress, progress
from routelmt_batch.submission.submissions import Submission, submission_id
from routelmt_batch.submission.submit import Order
from tests.cli.test_cli import label_spec
from tests.conftest import DEMO

METADATA = {
    "routelmt_batch": "0.1.0",
    "command": "run",
    "name": "nightly",
    "output": "/corpora/out/1",
    "attempt": "2",
    "order": "0123abcd",
    "submitted_by": "ada@host",
    "nonce": "89ef",
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
        command="run",
        name="nightly",
        output="/corpora/out/1",
        attempt=2,
        order="0123abcd",
        submitted_by="ada@host",
        nonce="89ef",
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


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ('score: 4 rows\n{"job": "nightly", "exit_code": 1, "message": "disk full"}\n', "disk full"),
        ('{"level": "info", "message": "begun"}\n{"exit_code": 3, "failed": 2}\n', None),  # done
        ('{"level": "info", "message": "score: 64/272 rows"}\n', None),  # killed
        ("4\nexec: /no/python: not found\n", None),
    ],
)
def test_why_it_ended_is_its_jobs_last_line(log, why):
    class Kept:
        def log(self, submission: Submission) -> str:
            return log

    assert _why(Kept(), Submission.read(details("FAILED", driver_exit_code=1))) == why
    assert _why(Kept(), Submission.read(details("SUCCEEDED", driver_exit_code=0))) is None


def test_how_far_labels_are_is_told_and_a_training_has_no_stages(invoke, tmp_path):
    """Twelve rows, one without a reference; the models translate 22 texts that can be measured."""
    assert invoke("label", label_spec(tmp_path)).exit_code == 0
    told = METADATA | {"command": "label", "output": str(tmp_path / "labels")}
    labels = Submission.read(details(metadata=told))
    (tmp_path / "router/_train").mkdir(parents=True)
    told = METADATA | {"command": "train", "output": str(tmp_path / "router")}
    assert progress([labels, Submission.read(details(metadata=told))]) == [
        Progress({"small": [12, 12], "large": [12, 12], "metric": [22, 22], "assemble": [1, 1]}),
        Progress(),
    ]


def test_options_reach_the_command_whole():
    order = Order(load(DEMO / "job.yaml"), ("--shards", "a b*/$x.parquet"), "/opt/my env/python")
    assert shlex.split(order.entrypoint) == [
        "exec", "/opt/my env/python", "-m", "routelmt_batch", "run", "spec.yaml", "--address", "auto",
        "--shards", "a b*/$x.parquet",
    ]  # fmt: skip


COMMANDS = typer.main.get_command(app).commands
SCOPE = ("--limit", "7", "--shards", "a*.parquet")
SCHEDULE = ("--time-limit", "1h30m", "--metrics-port", "0", "--log-format", "json", "--verbose")


@pytest.fixture
def submitted(invoke, monkeypatch, tmp_path):
    """`submit` up to the cluster: what it answered, and what it would hand over, if it would."""
    orders = []

    def take(cluster: object, order: Order, attach: bool) -> tuple[Submission, bool]:
        orders.append(order)
        return Submission.read(details()), True

    monkeypatch.setattr(submit_module, "submit", take)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # a cluster sets Ray's variables
    monkeypatch.chdir(tmp_path)

    def submit(*arguments: object) -> tuple[object, list[Order]]:
        return invoke("submit", *arguments, "--address", "http://head:8265"), orders

    return submit


@pytest.mark.parametrize(
    ("command", "spec", "own", "given", "paths"),
    [
        (
            "run",
            "job.yaml",
            ("--attach", "--python", "/opt/python"),
            (*SCOPE, *SCHEDULE, "--retry-failed", "--against", "night", "--fail-if", "failed>0.01", "--fail-if", "psi>1"),
            {"against": "night"},
        ),
        ("plan", "job.yaml", ("--plan",), (*SCOPE, *SCHEDULE), {}),
        ("label", "label.yaml", (), (*SCOPE, *SCHEDULE, "--fail-if", "failed>0.01"), {}),
        ("train", "train.yaml", (), SCHEDULE, {}),
    ],
)  # fmt: skip
def test_submit_hands_on_what_the_specs_command_takes(submitted, tmp_path, command, spec, own, given, paths):
    """As that command itself reads it, but for paths and what is in the spec."""
    changed = ("--output", "elsewhere", "--set", "name=other")
    result, [order] = submitted(DEMO / spec, *own, *changed, *given)
    assert result.exit_code == 0, result.output
    assert (order.spec.name, order.output) == ("other", str(tmp_path / "elsewhere"))
    _, python, _, _, name, file, *arguments = shlex.split(order.entrypoint)
    assert (python, name) == ("/opt/python" if "--python" in own else "python", command)
    found = COMMANDS[name].make_context(name, [file, *arguments]).params
    wanted = COMMANDS[name].make_context(name, [file, *given, "--address", "auto"]).params
    assert found == wanted | {option: str(tmp_path / path) for option, path in paths.items()}


def options(command: str) -> set[str]:
    return {
        name for parameter in COMMANDS[command].params for name in parameter.opts if name.startswith("--")
    }


@pytest.mark.parametrize("command", ["run", "plan", "label", "train"])
def test_submit_has_every_option_of_what_it_runs(command):
    assert options(command) - options("submit") == ({"--dry-run"} if command == "run" else set())


@pytest.mark.parametrize(
    ("spec", "given", "message"),
    [
        ("job.yaml", ("--fail-if", "faled>0.1"), "there is no condition 'faled'"),
        ("job.yaml", ("--against", "night"), "needs --fail-if 'psi>...'"),
        ("job.yaml", ("--time-limit", "90"), "give hours, minutes or seconds"),
        ("label.yaml", ("--fail-if", "psi>0.2"), "--fail-if psi>0.2: labels have no scores; give failed>NUMBER"),
        ("label.yaml", ("--plan",), "label.yaml is a spec for `label`, and only a job can be planned. Leave --plan out"),
        ("label.yaml", ("--budget", "0.3"), "--budget 0.3: {folder}/label.yaml is a spec for `label`, which has no such"),
        ("label.yaml", ("--retry-failed",), "--retry-failed: {folder}/label.yaml is a spec for `label`, which has no"),
        ("train.yaml", ("--limit", "7"), "train.yaml is a spec for `train`, which has no such option. Leave it out"),
        ("train.yaml", ("--fail-if", "failed>0.1"), "--fail-if failed>0.1: {folder}/train.yaml is a spec for `train`"),
        ("job.yaml", ("--plan", "--cap", "1"), "--cap 1: --plan hands over `plan`, which has no such option"),
    ],
)  # fmt: skip
def test_what_its_command_would_refuse_is_not_submitted(submitted, spec, given, message):
    result, orders = submitted(DEMO / spec, *given)
    assert isinstance(result.exception, UsageError) and not orders
    assert message.format(folder=DEMO) in str(result.exception)


@pytest.mark.parametrize("spelling", ["/corpora/in/../out/1", "/corpora/out/./1", "/corpora//out/1/"])
def test_an_output_is_the_same_however_it_is_spelled(spelling):
    spec = load(DEMO / "job.yaml", output_uri=spelling)
    assert Order(spec).output == "/corpora/out/1"


class Beaten:
    """A job server that has the id taken when it is asked to take it."""

    url = "http://head:8265"

    def __init__(self, **told: object) -> None:
        self.told, self.asked = told, {}

    def latest(self, output: str) -> Submission | None:
        if not self.asked:
            return None
        metadata = METADATA | {"output": output, "order": self.asked["order"]} | self.told.get("metadata", {})
        if self.told.get("own"):
            metadata["nonce"] = self.asked["nonce"]
        status = self.told.get("status", "RUNNING")
        return Submission.read(details(status, submission_id=self.id, metadata=metadata))

    def submit(self, submission_id: str, entrypoint: str, **travels: object) -> None:
        self.id, self.asked = submission_id, travels["metadata"]
        raise RoutelmtError("http://head:8265: there already")


def test_a_submission_whose_answer_is_lost_is_ones_own(tmp_path):
    order = Order(load(DEMO / "job.yaml", output_uri=str(tmp_path)))
    found, new = submit_module.submit(Beaten(own=True), order)
    assert new and found.output == str(tmp_path)


def test_somebody_elses_of_a_moment_ago_is_refused_as_it_is(tmp_path):
    order = Order(load(DEMO / "job.yaml", output_uri=str(tmp_path)))
    with pytest.raises(OutputError, match=r"uses this output \(RUNNING, by ada@host\)"):
        submit_module.submit(Beaten(), order)
    assert submit_module.submit(Beaten(), order, attach=True)[1] is False
    with pytest.raises(OutputError, match="by ada@host, was submitted a moment before and is FAILED"):
        submit_module.submit(Beaten(status="FAILED"), order)


def test_a_spec_that_travelled_is_the_one_that_was_submitted(tmp_path):
    # From another folder, as on the cluster: paths are absolute already, hub names and URIs stay as they are.
    specs = [(DEMO / name, load) for name in ("job.yaml", "guarded.yaml", "../nightly.yaml")]
    specs += [(DEMO / "label.yaml", load_label), (DEMO / "train.yaml", load_train_spec)]
    for spec, read in specs:
        submitted = read(spec, output_uri=str(tmp_path / "out"))
        (tmp_path / "travelled").mkdir(exist_ok=True)
        (tmp_path / "travelled/spec.yaml").write_text(submitted.dump(), encoding="utf8")
        assert read(tmp_path / "travelled/spec.yaml") == submitted
        assert all(source.startswith(("/", "s3://")) for source in Order(submitted).sources)


def test_a_link_in_an_absolute_path_travels_as_it_is(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "corpora").symlink_to(tmp_path / "here")
    router = str(tmp_path / "corpora" / "router")
    assert load(DEMO / "job.yaml", [f"router.source={router}"]).router.source == router


def test_another_budget_option_or_command_is_another_order():
    spec = load(DEMO / "job.yaml", budget_fraction="0.2")
    orders = [
        Order(spec),
        Order(load(DEMO / "job.yaml")),
        Order(spec, ("--limit", "5")),
        Order(spec, plan=True),
    ]
    assert len({order.digest for order in orders}) == 4
    assert Order(load(DEMO / "job.yaml", budget_fraction="0.2")).digest == orders[0].digest
