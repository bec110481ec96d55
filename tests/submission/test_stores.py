"""Jobs whose output is in a store: what is sent for them, and their progress, read from the store."""

import json
import os
import re
import socket
from collections.abc import Iterator
from unittest import mock

import pytest
import requests
import yaml

from routelmt_batch.errors import SpecError
from routelmt_batch.job import rates
from routelmt_batch.learning.training.spec import load_train_spec
from routelmt_batch.spec.file import load, load_label
from routelmt_batch.submission import progress as module
from routelmt_batch.submission.progress import Progress
from tests.conftest import DEMO
from tests.files.s3 import S3Server, s3_server
from tests.job.test_rates import FILE
from tests.submission.jobserver import JobServer, job_server

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret-of-the-caller",
    "AWS_SESSION_TOKEN": "aws-token-of-the-caller",
    "AZURE_STORAGE_ACCOUNT_KEY": "azure-key-of-the-caller",
    "GOOGLE_SERVICE_ACCOUNT_KEY": "google-key-of-the-caller",
    "HF_TOKEN": "hub-token-of-the-caller",
}


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A bucket of these tests' own: a process keeps its client of a bucket."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        requests.put(f"{server.endpoint}/submitted", timeout=30).raise_for_status()
        yield S3Server(server.endpoint, "submitted")


@pytest.fixture
def store(bucket: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in bucket.environ.items():
        monkeypatch.setenv(name, value)
    return bucket


@pytest.fixture
def jobs() -> Iterator[JobServer]:
    with job_server() as server, mock.patch.dict(os.environ):  # a cluster sets Ray's variables
        os.environ["RAY_API_SERVER_ADDRESS"] = server.url
        yield server


def test_no_credential_is_in_a_submission(invoke, jobs, monkeypatch, make_spec):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    result = invoke("submit", make_spec(), "--output", "s3://corpora/out/1", "--budget", "0.2")
    assert result.exit_code == 0, result.output
    [environment] = jobs.environment
    assert environment["env_vars"].keys() == {"RAY_JOB_STOP_WAIT_TIME_S", "ROUTELMT_SUBMITTED"}
    sent = b"\0".join([*jobs.received, result.output.encode(), result.stderr.encode()])
    assert b"uri: s3://corpora/out/1" in sent and b"def submit(" in sent, "spec and package are among it"
    assert not [name for name, secret in SECRETS.items() if secret.encode() in sent]


URIS = {
    "input.uri": ["s3://corpora/in", "gs://corpora/in/*.parquet", "az://corpora/in"],
    "models.small.source": "s3://models/small",
    "models.large.source": "gs://models/large",
    "router.source": "az://models/router",
}


def test_uris_pass_unchanged_and_relative_paths_are_made_absolute_here(invoke, jobs, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = [part for key, uri in URIS.items() for part in ("--set", f"{key}={json.dumps(uri)}")]
    for given, sent in (("s3://corpora/out/0", "s3://corpora/out/0"), ("night", f"{tmp_path}/night")):
        options = ("--against", given, "--fail-if", "psi>0.2", "--output", "s3://corpora/out/1")
        result = invoke("submit", DEMO / "job.yaml", *settings, *options)
        assert result.exit_code == 0, result.output
        spec = next(yaml.safe_load(file) for file in reversed(jobs.received) if file.startswith(b"name:"))
        assert spec["input"]["uri"] == URIS["input.uri"]
        assert spec["models"]["small"]["source"] == "s3://models/small"
        assert spec["models"]["large"]["source"] == "gs://models/large"
        assert spec["router"]["source"] == "az://models/router"
        assert spec["output"]["uri"] == "s3://corpora/out/1"
        [job] = jobs.jobs.values()
        assert job["entrypoint"].endswith(f" --against {sent}")
        jobs.jobs.clear()
    result = invoke("submit", DEMO / "job.yaml", "--plan", "--rates", "gs://corpora/rates.yaml")
    spec = next(yaml.safe_load(file) for file in reversed(jobs.received) if file.startswith(b"name:"))
    assert result.exit_code == 0 and spec["budget"]["rates"] == "gs://corpora/rates.yaml"


def test_label_tables_and_labels_may_be_in_stores(tmp_path):
    trained = load_train_spec(DEMO / "train.yaml", ['tables=["s3://corpora/labels/data", "more"]'])
    assert trained.tables == ["s3://corpora/labels/data", str(DEMO / "more")]
    labels = load_label(DEMO / "label.yaml", ["input.uri=s3://corpora/in"], "s3://corpora/labels/")
    assert (labels.input.uri, labels.output.uri) == ("s3://corpora/in", "s3://corpora/labels")


def test_a_training_does_not_write_to_a_store():
    with pytest.raises(
        SpecError, match="to a disk that its workers share: give a path, and copy the finished"
    ):
        load_train_spec(DEMO / "train.yaml", (), "s3://corpora/routers/new")


@pytest.mark.parametrize("spelling", ["s3://corpora/out/1", "s3://corpora/out/1/", "S3://corpora//out/1"])
def test_an_output_in_a_store_is_the_same_however_it_is_spelled(invoke, jobs, spelling):
    assert load(DEMO / "job.yaml", output_uri=spelling).output.uri == "s3://corpora/out/1"
    first = invoke("submit", DEMO / "job.yaml", "--output", "s3://corpora/out/1")
    again = invoke("submit", DEMO / "job.yaml", "--output", spelling, "--attach")
    assert again.stdout == first.stdout, again.output
    assert re.fullmatch(r"routelmt-1-[0-9a-f]{8}-1\n", first.stdout) and len(jobs.jobs) == 1


@pytest.fixture
def planned(invoke, store, jobs, make_spec) -> str:
    """A job that has scored its rows into the store, and is submitted to go on."""
    uri = store.uri("planned")
    assert invoke("plan", make_spec(), "--output", uri).exit_code == 0
    result = invoke("submit", make_spec(), "--output", uri)
    assert result.exit_code == 0, result.output
    return uri


def test_its_progress_is_read_from_the_store(invoke, planned):
    """The corpus has 71 rows."""
    status = json.loads(invoke("status", f"{planned}/", "--json").stdout)
    assert (status["output"], status["status"], status["stages"]) == (planned, "RUNNING", {"score": [71, 71]})
    assert re.search(r"score +71 +71", invoke("status", planned).stdout)
    [listed] = json.loads(invoke("list", "--json").stdout)
    assert (listed["id"], listed["stages"]) == (status["id"], {"score": [71, 71]})
    assert re.search(r"run +RUNNING +score 71/71 +s3://", invoke("list").stdout)
    assert json.loads(invoke("report", planned, "--json").stdout)["stages"] == {"score": [71, 71]}


@pytest.mark.parametrize(
    ("stages", "current"),
    [
        (None, ""),
        ({}, ""),
        ({"score": [3, 9]}, "score 3/9"),
        ({"score": [9, 9], "translate large": [1, 2], "translate small": [0, 7]}, "translate large 1/2"),
        ({"score": [9, 9], "assemble": [6, 6]}, "assemble 6/6"),
    ],
)
def test_what_a_job_does_now_is_its_first_stage_with_rows_left(stages, current):
    assert Progress(stages).current == current


def test_without_access_the_clusters_own_status_is_shown(invoke, store, jobs):
    """There is no such bucket on the server."""
    invoke("submit", DEMO / "job.yaml", "--output", "s3://not-there/1")
    told = "its progress cannot be read from here: s3://not-there/1/_job/manifest.json: no such bucket"
    shown = invoke("status", "s3://not-there/1")
    assert shown.exit_code == 0 and re.search(r"status +RUNNING", shown.stdout)
    assert told in shown.stderr and len(shown.stderr.splitlines()) == 1
    state = invoke("status", "s3://not-there/1", "--json")
    assert (state.exit_code, json.loads(state.stdout)["stages"]) == (0, None) and told in state.stderr
    listed = invoke("list")
    assert listed.exit_code == 0 and "RUNNING" in listed.stdout and told in listed.stderr


def test_a_store_that_does_not_answer_is_given_up(invoke, store, jobs, monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        invoke("submit", DEMO / "job.yaml", "--output", "s3://silent/1")
        shown = invoke("status", "s3://silent/1")
    assert shown.exit_code == 0 and "cannot be read from here: no answer within 1 s" in shown.stderr


def test_rates_may_be_in_a_store(store, make_spec):
    store.put("rates.yaml", yaml.safe_dump(FILE).encode())
    found = rates.load(store.uri("rates.yaml"), load(make_spec()))
    assert (found.router.gpus, found.large.price_per_gpu_hour) == (4, 4)
    with pytest.raises(SpecError, match=r"s3://submitted/none\.yaml: no such spec file"):
        rates.load(store.uri("none.yaml"), load(make_spec()))
