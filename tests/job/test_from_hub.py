"""A job whose input is a dataset on a hub: it reads one commit from its first row to its last."""

import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from routelmt_batch.errors import InputError, StoreError
from routelmt_batch.job import flow
from routelmt_batch.learning.labels import find
from routelmt_batch.spec.file import load
from routelmt_batch.tokens import load_tokenizer
from tests import oracle
from tests.conftest import MODELS, REPOSITORY, write_shard
from tests.fake_engine import FakeEngine
from tests.job.test_resume import BARS, run_armed

pytestmark = pytest.mark.usefixtures("no_page")
ASKED = "hf://datasets/ours/corpus/data"


@pytest.fixture(scope="module", autouse=True)
def loaded():
    for name in ("small", "large", "router"):
        load_tokenizer(str(MODELS / name))


@pytest.fixture
def commit(hub, corpus) -> str:
    return hub.dataset("ours/corpus").commit_folder(corpus)


@pytest.fixture
def moved(hub, tmp_path):
    """Moves the branch to other rows; gives the folder with them and the new commit."""

    def move():
        folder = tmp_path / "moved"
        write_shard(folder / "a.parquet", ["A moved branch.", "It has other rows."])
        return folder, hub.dataset("ours/corpus").commit_folder(folder)

    return move


def at(commit: str) -> str:
    return f"hf://datasets/ours/corpus@{commit}/data"


def run(spec, tmp_path, **overrides):
    return flow.run(load(spec, **overrides), flow.Options(), BARS, FakeEngine(tmp_path / "sent.log").opened)


def manifest(output):
    return json.loads((output / "_job/manifest.json").read_text())


def test_a_job_reads_each_file_once_and_names_the_commit(hub, commit, make_spec, corpus, tmp_path):
    run(make_spec(input__uri=ASKED), tmp_path)
    oracle.check(tmp_path / "out", corpus, "0.3")
    assert hub.counts["bytes"] == sum(path.stat().st_size for path in corpus.rglob("*.parquet"))
    written = manifest(tmp_path / "out")
    assert written["revisions"] == {ASKED: at(commit)}
    listed = pq.read_table(tmp_path / "out/_job/shards" / written["shards"]["file"]).to_pylist()
    assert {shard["name"]: shard["uri"] for shard in listed} == {
        name: f"{at(commit)}/{name}"
        for name in ("a.parquet", "b-one.parquet", "c-none.parquet", "sub/d.parquet")
    }
    assert f"uri: {ASKED}\n" in (tmp_path / "out/_job/spec.yaml").read_text()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("failpoint", ["scores.write:1", "translations.write:2", "output.write:2"])
def test_a_job_that_goes_on_reads_its_commit_though_the_branch_moved(
    hub, commit, moved, make_spec, corpus, tmp_path, monkeypatch, failpoint
):
    spec = make_spec(input__uri=ASKED)
    assert run_armed(spec, tmp_path / "sent.log", failpoint) == -signal.SIGKILL
    folder, new = moved()
    hub.use(monkeypatch, tmp_path / "cache of another node")
    run(spec, tmp_path)
    oracle.check(tmp_path / "out", corpus, "0.3")
    assert manifest(tmp_path / "out")["revisions"] == {ASKED: at(commit)}
    run(spec, tmp_path, output_uri=str(tmp_path / "new"))
    oracle.check(tmp_path / "new", folder, "0.3")
    assert manifest(tmp_path / "new")["revisions"] == {ASKED: at(new)}


def test_another_revision_is_refused_if_its_rows_differ(hub, commit, moved, make_spec, tmp_path):
    run(make_spec(input__uri=ASKED), tmp_path)
    _, new = moved()
    with pytest.raises(InputError, match=r"(?s)not what this job began with:.*a\.parquet: changed"):
        run(make_spec(input__uri=at(new)), tmp_path)


def test_a_finished_job_may_be_run_again(hub, commit, moved, make_spec, corpus, tmp_path):
    run(make_spec(input__uri=ASKED), tmp_path)
    moved()
    run(make_spec(input__uri=ASKED), tmp_path)
    oracle.check(tmp_path / "out", corpus, "0.3")


def test_a_file_that_cannot_be_downloaded_ends_the_job(hub, commit, make_spec, tmp_path):
    hub.fails, hub.fails_at = 410, "/lfs"
    with pytest.raises(StoreError, match=r"data/.*\.parquet: .* did not do it \(HTTP 410\)"):
        run(make_spec(input__uri=ASKED), tmp_path)
    assert not (tmp_path / "out/_job").exists(), "it is not taken for an unreadable shard"


def test_a_dry_run_names_the_commit(hub, commit, moved, make_spec, invoke, tmp_path):
    spec = make_spec(input__uri=ASKED)
    answer = invoke("run", spec, "--dry-run")
    assert answer.exit_code == 0 and f"71 rows in 4 shards of {at(commit)}" in answer.stdout
    assert invoke("run", spec).exit_code == 0
    _, new = moved()
    assert at(commit) in invoke("run", spec, "--dry-run").stdout
    assert at(new) in invoke("run", spec, "--dry-run", "--output", tmp_path / "new").stdout


def test_label_tables_may_be_on_a_hub(hub, commit):
    assert [(str(table.path), table.rows()) for table in find([f"{ASKED}/sub"])] == [
        (f"{at(commit)}/sub/d.parquet", 20)
    ]


def test_the_environment_names_hub_token_and_cache(hub, commit, make_spec, tmp_path):
    hub.dataset("ours/corpus").token = "hf_secret"
    command = [sys.executable, "-m", "routelmt_batch", "run", str(make_spec(input__uri=ASKED)), "--dry-run"]
    environ = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "named")}
    environ |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_secret", "COLUMNS": "200"}

    def answer(**changes):
        env = environ | changes
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=120)

    good = answer()
    assert good.returncode == 0 and at(commit) in good.stdout, good.stderr
    assert len(list((tmp_path / "named").rglob("*.parquet"))) == 4
    refused = answer(HF_TOKEN="")
    assert refused.returncode == 2 and "no such dataset, or no access to it" in refused.stderr
    assert "hf_secret" not in good.stdout + good.stderr + refused.stderr
