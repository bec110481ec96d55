"""Models of object stores: fetched once, checked, repaired, and the same as on a disk for all that reads them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from routelmt_batch import fetched
from routelmt_batch.errors import DiskFull, ModelError, StoreError, UsageError
from routelmt_batch.files import bucket
from routelmt_batch.prompts import Prompter, load_tokenizer
from routelmt_batch.spec.file import load
from routelmt_batch.stages.recipe import check_models
from routelmt_batch.store import cache, checkpoints
from routelmt_batch.store.cache import fetch
from tests.conftest import MODELS, REPOSITORY
from tests.files.faults import Fault
from tests.files.proxy import faulty
from tests.files.s3 import s3_server
from tests.waiting import wait_for

FETCH = "import sys; from routelmt_batch.store.cache import fetch; print(fetch(sys.argv[1]).sha256)"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        for name in ("small", "large", "router", "comet"):
            running.put_folder(MODELS / name, f"models/{name}")
        yield running


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    """A proxy of the server, an empty cache, and a process that has fetched nothing yet."""
    with faulty(server) as proxy:
        for name, value in {**proxy.environ, cache.VARIABLE: str(tmp_path / "cache")}.items():
            monkeypatch.setenv(name, value)
        bucket._store.cache_clear()
        new_process(monkeypatch)
        yield proxy
    bucket._store.cache_clear()


def new_process(monkeypatch) -> None:
    """Forget what this process has fetched."""
    monkeypatch.setattr(fetched, "_COPIES", {})
    for remembered in (checkpoints.weights_hash, checkpoints.texts, load_tokenizer):
        remembered.cache_clear()


@pytest.fixture
def model(server, tmp_path) -> tuple[str, str]:
    """A copy of the small model that a test may change: its URI and its key."""
    key = f"{tmp_path.name}/small"
    server.put_folder(MODELS / "small", key)
    return server.uri(key), key


def elsewhere(uri: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, uri],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def downloads(proxy, key: str) -> list[str]:
    """The files below a key that were read, in the order of their first requests."""
    return [name.removeprefix(f"{key}/") for method, name in proxy.requests if method == "get"]


@pytest.mark.parametrize("name", ["small", "large", "router"])
def test_a_fetched_model_has_the_hashes_of_its_folder(store, server, name):
    uri, folder = server.uri(f"models/{name}"), str(MODELS / name)
    checkpoints.locate(uri, "models.small.source")
    assert checkpoints.weights_hash(uri) == checkpoints.weights_hash(folder)
    assert checkpoints.texts(uri) == checkpoints.texts(folder)
    assert checkpoints.config(uri) == checkpoints.config(folder)
    assert checkpoints.end_tokens(uri) == checkpoints.end_tokens(folder)


def test_a_fetched_folder_has_the_same_files(store, server):
    copy = Path(fetch(server.uri("models/router")).folder)
    ours = {path.relative_to(MODELS / "router"): path for path in (MODELS / "router").rglob("*")}
    theirs = {path.relative_to(copy): path for path in copy.rglob("*")}
    assert ours.keys() == theirs.keys()
    assert all(ours[name].read_bytes() == theirs[name].read_bytes() for name in ours if ours[name].is_file())


@pytest.mark.parametrize("given", ["comet", "comet/", "comet/checkpoints/model.ckpt"])
def test_a_fetched_comet_checkpoint_has_the_hash_and_name_of_its_folder(store, server, given):
    here = checkpoints.comet(str(MODELS / "comet"), "metric")
    there = checkpoints.comet(f"{server.uri('models')}/{given}", "metric")
    assert (there.name, there.sha256, there.hparams) == (here.name, here.sha256, here.hparams)
    assert there.source == server.uri("models/comet/checkpoints/model.ckpt"), "it travels to other nodes"
    assert Path(fetched.local(there.source)).read_bytes() == Path(here.source).read_bytes()


def test_a_job_is_the_same_with_models_from_a_store(store, server, make_spec):
    models = {
        "models__small__source": server.uri("models/small"),
        "models__large__source": server.uri("models/large"),
        "router__source": server.uri("models/router"),
    }
    here, there = check_models(load(make_spec())), check_models(load(make_spec(**models)))
    assert there.fingerprints([], None) == here.fingerprints([], None)
    assert there.spec.models.small.source == server.uri("models/small"), "a URI stays a URI"
    ids = [router.prompter.token_ids(["A cat."], ["en"], ["de"]) for router in (here.router, there.router)]
    assert ids[0] == ids[1]


def test_a_tokenizer_is_loaded_from_the_copy(store, server):
    uri = server.uri("models/small")
    fetch(uri)
    texts = (["A cat."], ["en"], ["de"])
    assert Prompter(uri).token_ids(*texts) == Prompter(str(MODELS / "small")).token_ids(*texts)


def test_a_second_use_downloads_nothing(store, model, monkeypatch):
    uri, key = model
    first = fetch(uri)
    assert sorted(downloads(store, key)) == sorted(path.name for path in (MODELS / "small").iterdir())
    store.requests.clear()
    assert fetch(uri) == first and not store.requests, "a process asks once"
    new_process(monkeypatch)
    assert fetch(uri) == first
    assert not downloads(store, key)


def test_two_processes_that_start_together_fetch_once(store, model):
    uri, key = model
    store.add(Fault("slow", method="get", seconds=0.3))
    processes = [elsewhere(uri), elsewhere(uri)]
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    read = downloads(store, key)
    assert sorted(read) == sorted(set(read)) == sorted(path.name for path in (MODELS / "small").iterdir())


def test_a_killed_download_goes_on_where_it_was(store, model, tmp_path):
    uri, key = model
    store.add(Fault("slow", method="get", key="tokenizer.json", seconds=30))
    process = elsewhere(uri)
    wait_for(lambda: "tokenizer.json" in downloads(store, key), "request for the tokenizer")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole = set(downloads(store, key)) - {"tokenizer.json"}
    store.clear()
    store.requests.clear()
    copy = fetch(uri)
    assert whole and not whole & set(downloads(store, key))
    assert "tokenizer.json" in downloads(store, key)
    assert copy.sha256 == digest_of(MODELS / "small")
    assert {path.name for path in Path(copy.folder).iterdir()} == set(copy.files), "no part is left"


def digest_of(folder: Path) -> str:
    """SHA-256 over names and SHA-256s, by sha256sum."""
    names = sorted(path.name for path in folder.iterdir())
    sums = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True)
    lines = [line.split() for line in sums.stdout.splitlines()]
    text = "".join(f"{name} {digest}\n" for digest, name in lines)
    whole = subprocess.run(["sha256sum"], input=text, capture_output=True, text=True, check=True)
    return whole.stdout.split()[0]


@pytest.mark.parametrize(
    "damage", ["truncated", "missing", "overwritten", "no record", "broken record", "more"]
)
def test_a_damaged_copy_is_repaired(store, model, monkeypatch, damage):
    uri, key = model
    copy = fetch(uri)
    folder = Path(copy.folder)
    weights, record = folder / "model.safetensors", folder.with_name(f"{folder.name}.json")
    match damage:
        case "truncated":
            os.truncate(weights, 1000)
        case "missing":
            weights.unlink()
        case "overwritten":
            weights.write_bytes(bytes(weights.stat().st_size))
        case "no record":
            record.unlink()
        case "broken record":
            record.write_text("{")
        case "more":
            shutil.copy(weights, folder / "other.safetensors")
    store.requests.clear()
    new_process(monkeypatch)
    assert fetch(uri) == copy
    assert weights.read_bytes() == (MODELS / "small" / "model.safetensors").read_bytes()
    assert {path.name for path in folder.iterdir()} == {path.name for path in (MODELS / "small").iterdir()}
    if damage in ("truncated", "missing", "overwritten"):
        assert downloads(store, key) == ["model.safetensors"]


def test_a_changed_object_is_noticed_and_the_former_copy_stays(store, server, model, monkeypatch):
    uri, key = model
    before, hash_before = fetch(uri), checkpoints.weights_hash(uri)
    server.put(f"{key}/model.safetensors", (MODELS / "router" / "model.safetensors").read_bytes())
    assert fetch(uri) == before, "a process uses one version"
    new_process(monkeypatch)
    assert checkpoints.weights_hash(uri) == checkpoints.weights_hash(str(MODELS / "router")) != hash_before
    assert (
        Path(before.folder, "model.safetensors").stat().st_size
        == (MODELS / "small" / "model.safetensors").stat().st_size
    ), "an engine may still read it"


def test_a_node_with_another_version_than_the_driver_is_refused(store, server, model, monkeypatch):
    uri, key = model
    seen = fetch(uri)
    server.put(f"{key}/generation_config.json", json.dumps({"eos_token_id": 2}).encode())
    new_process(monkeypatch)
    with pytest.raises(
        ModelError, match=f"{uri}: on node .* but the job began with {seen.sha256[:12]}.*put the"
    ):
        fetch(uri, expected=seen.sha256)


def test_work_folders_and_empty_objects_for_folders_are_left_out(store, server, model):
    uri, key = model
    server.put(f"{key}/_calibrate/_job/log/1", b"work")
    server.put(f"{key}/onnx", b"")
    server.put(f"{key}/onnx/model.onnx", b"1")
    assert fetch(uri).files.keys() == {
        "onnx/model.onnx",
        *(path.name for path in (MODELS / "small").iterdir()),
    }


def test_large_files_are_read_in_ranges(store, model, monkeypatch):
    monkeypatch.setattr(cache, "_RANGE_BYTES", 1 << 20)
    uri, key = model
    size = (MODELS / "small" / "model.safetensors").stat().st_size
    assert fetch(uri).sha256 == digest_of(MODELS / "small")
    assert downloads(store, key).count("model.safetensors") == -(-size // (1 << 20)) > 1


def test_a_model_that_is_replaced_while_it_is_fetched_is_fetched_again(store, server, model, monkeypatch):
    uri, key = model
    other = (MODELS / "router" / "model.safetensors").read_bytes()
    download = cache._download

    def replaced_first(source, path, received):
        if path.parent.name.startswith("small") and not replaced:
            replaced.append(source)
            server.put(f"{key}/model.safetensors", other)
        download(source, path, received)

    replaced: list[object] = []
    monkeypatch.setattr(cache, "_download", replaced_first)
    assert Path(fetch(uri).folder, "model.safetensors").read_bytes() == other


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "models/smal",
            "models.small.source {uri}: its bucket has no objects below this name: check the URI; did you mean 'small'?",
        ),
        (
            "nothing/there",
            "models.small.source {uri}: its bucket has no objects below this name: check the URI",
        ),
        ("models", "models.small.source {uri}: no config.json there; give the folder of a model"),
        ("weightless", "models.small.source {uri}: no weights there (*.safetensors); give a complete folder"),
    ],
)
def test_what_is_no_model_is_told(store, server, source, message):
    server.put("weightless/config.json", b"{}")
    uri = server.uri(source)
    with pytest.raises(ModelError, match=f"^{re.escape(message.format(uri=uri))}$"):
        checkpoints.locate(uri, "models.small.source")
    assert source == "weightless" or not downloads(store, source), "nothing is fetched in vain"


def test_a_dataset_is_no_model(store):
    with pytest.raises(ModelError, match="hf://datasets/a/b: not a model's URI: .*by its name"):
        checkpoints.locate("hf://datasets/a/b", "models.small.source")


def test_a_missing_bucket_is_told(store):
    with pytest.raises(StoreError, match="s3://nowhere/models/small: no such bucket"):
        checkpoints.locate("s3://nowhere/models/small", "models.small.source")


def test_a_full_disk_is_told_before_anything_is_fetched(store, model, monkeypatch):
    uri, key = model
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(DiskFull, match=f"{uri}: no space for its 3 MiB on the disk of .*set ROUTELMT_CACHE"):
        fetch(uri)
    assert not downloads(store, key)


def test_a_cache_that_cannot_be_written_is_told(store, model, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(
        UsageError, match=r"ROUTELMT_CACHE: models are fetched to .*/file on .*, which cannot be"
    ):
        fetch(model[0])
