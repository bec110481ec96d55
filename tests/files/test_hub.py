"""Datasets on the Hugging Face hub: found, pinned to a commit, downloaded once, and never written."""

import errno
import hashlib

import pytest
from huggingface_hub import HfApi, constants

from routelmt_batch.corpus.shards import discover, pins
from routelmt_batch.errors import DiskFull, InputError, StoreError, UsageError
from routelmt_batch.files.location import Replaced, Stat
from routelmt_batch.files.uris import locate
from routelmt_batch.spec.parts import Output
from tests.files.hub_server import git_sha1

FILES = {
    "README.md": b"Read me.",
    "data/de/0.parquet": b"zero",
    "data/de/1.parquet": b"one",
    "data/fr/0.parquet": b"null",
    "data/_old/0.parquet": b"old",
    "data/notes.txt": b"note",
    "top.parquet": b"top",
}
OF_HUB = "hf://datasets/ours/corpus"


@pytest.fixture
def commit(hub) -> str:
    return hub.dataset("ours/corpus").commit(FILES)


@pytest.mark.parametrize(
    ("path", "names", "root"),
    [
        ("", ["data/de/0.parquet", "data/de/1.parquet", "data/fr/0.parquet", "top.parquet"], ""),
        ("/", ["data/de/0.parquet", "data/de/1.parquet", "data/fr/0.parquet", "top.parquet"], ""),
        ("@main/data", ["de/0.parquet", "de/1.parquet", "fr/0.parquet"], "data/"),
        ("/data/de/*.parquet", ["0.parquet", "1.parquet"], "data/de/"),
        ("/data/*/0.parquet", ["de/0.parquet", "fr/0.parquet"], "data/"),
        ("/data/**/1.*", ["de/1.parquet"], "data/"),
        ("/data/fr/0.parquet", ["0.parquet"], "data/fr/"),
        ("@{commit}/top.parquet", ["top.parquet"], ""),
        ("@refs%2Fpr%2F1/top.parquet", ["top.parquet"], ""),
        ("@a%2Fb/top.parquet", ["top.parquet"], ""),
    ],
)
def test_shards_are_found_and_named_by_their_commit(hub, commit, path, names, root):
    for branch in ("refs/pr/1", "a/b"):
        hub.dataset("ours/corpus").branches[branch] = commit
    found = discover(OF_HUB + path.format(commit=commit))
    assert [(name, str(place)) for name, place in found] == [
        (name, f"{OF_HUB}@{commit}/{root}{name}") for name in names
    ]


def test_a_long_list_is_read_to_its_end(hub):
    hub.dataset("ours/corpus").commit({f"{number:02}.parquet": b"" for number in range(20)})
    assert [name for name, _ in discover(OF_HUB)] == [f"{number:02}.parquet" for number in range(20)]


def test_a_file_has_the_size_and_hash_that_the_hub_lists(hub, commit):
    data, text = FILES["data/de/1.parquet"], FILES["README.md"]
    assert locate(f"{OF_HUB}/data/de/1.parquet").stat() == Stat(len(data), hashlib.sha256(data).hexdigest())
    assert locate(f"{OF_HUB}/README.md").stat() == Stat(len(text), git_sha1(text))
    assert locate(f"{OF_HUB}/data").stat() is None and locate(f"{OF_HUB}/data").is_folder()
    assert locate(f"{OF_HUB}/nothing").stat() is None and not locate(f"{OF_HUB}/nothing").is_folder()
    assert locate(f"{OF_HUB}/data").names() == ["_old", "de", "fr", "notes.txt"]


def test_a_file_is_downloaded_once_and_read_without_the_hub(hub, commit):
    place = locate(f"{OF_HUB}@{commit}/data/de/0.parquet")
    with place.open() as file:
        version = file.stat.version
    hub.fails = 503
    for _ in range(2):
        with place.open(version) as file:
            file.seek(1)
            assert file.read() == b"ero" and file.stat == Stat(4, version)
    assert place.read_bytes() == b"zero"
    assert hub.counts["bytes"] == 4


def test_a_branch_that_moves_is_another_version(hub, commit):
    place = locate(f"{OF_HUB}/top.parquet")
    before = place.stat()
    hub.dataset("ours/corpus").commit(FILES | {"top.parquet": b"new"})
    with pytest.raises(Replaced, match="changed since it was read"):
        place.open(before.version)
    assert place.read_bytes() == b"new"
    assert locate(f"{OF_HUB}@{commit}/top.parquet").read_bytes() == b"top"


def test_only_a_branch_is_pinned_and_only_once(hub, commit, tmp_path):
    whole = f"{OF_HUB}@{commit}"
    first = pins([OF_HUB, whole, str(tmp_path), "s3://corpus/in"], {})
    assert first == {OF_HUB: whole}
    hub.dataset("ours/corpus").commit({"top.parquet": b"new"})
    assert pins([OF_HUB], first) == first
    assert pins([OF_HUB], {}) != first


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("hf://datasets/ours/nothing", UsageError, "no such dataset, or no access to it. .* set HF_TOKEN"),
        (f"{OF_HUB}@nothing", UsageError, "@nothing: no such revision. Give a branch, a tag or a whole"),
        (f"{OF_HUB}@{'0' * 40}", UsageError, "no such revision"),
        (f"{OF_HUB}/dat", InputError, r"no such folder or file; did you mean 'data'\?"),
        (f"{OF_HUB}/data/*.csv", InputError, "no Parquet shards there"),
        ("hf://ours/model", UsageError, "is a model, and only datasets are read: give hf://datasets/OWNER"),
        ("hf://datasets/alone", UsageError, r"'namespace/name', .* Give hf://datasets/OWNER/NAME"),
        ("hf://dataset/ours/corpus", UsageError, "must be plural"),
    ],
)
def test_what_is_not_there_is_told(hub, commit, uri, error, message):
    with pytest.raises(error, match=message):
        discover(uri)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (503, r"http://127.0.0.1:\d+ did not do it \(HTTP 503\). .* run the same command again"),
        (401, r"the hub denies access \(HTTP 401\). Check HF_TOKEN"),
    ],
)
def test_a_hub_that_refuses_is_told(hub, commit, status, message):
    hub.fails = status
    with pytest.raises(StoreError, match=message):
        discover(OF_HUB)


def test_a_hub_that_cannot_be_reached_is_told(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"http://127.0.0.1:9 did not do it \(ConnectError"):
        discover(OF_HUB)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="the hub is not asked while HF_HUB_OFFLINE is set. Unset it"):
        discover(OF_HUB)


def test_a_private_dataset_is_read_with_the_token(hub, commit, monkeypatch):
    hub.dataset("ours/corpus").token = "hf_secret"
    with pytest.raises(UsageError, match="no such dataset, or no access to it"):
        discover(OF_HUB)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    (_, place), *_ = discover(OF_HUB)
    assert place.read_bytes() == b"zero"


def test_a_gated_dataset_names_the_page_with_its_terms(hub, commit, monkeypatch):
    hub.dataset("ours/corpus").token, hub.dataset("ours/corpus").is_gated = "hf_secret", True
    (_, place), *_ = discover(OF_HUB)
    with pytest.raises(
        StoreError, match=r"gated. Accept its terms at http://.*/datasets/ours/corpus, and set HF_"
    ):
        place.open()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert place.read_bytes() == b"zero"


def test_a_message_has_no_signed_address(hub, commit):
    (_, place), *_ = discover(OF_HUB)
    hub.fails, hub.fails_at = 410, "/lfs"
    with pytest.raises(StoreError) as error:
        place.open()
    assert "HTTP 410" in str(error.value) and "secret" not in str(error.value)


def test_a_copy_of_another_size_is_told(hub, commit, tmp_path):
    place = locate(f"{OF_HUB}@{commit}/top.parquet")
    place.open().close()
    next((tmp_path / "hub-cache").rglob("top.parquet")).write_bytes(b"to")
    with pytest.raises(
        StoreError, match=r"has 3 bytes on the hub and 2 in the cache. Remove .*/top.parquet and"
    ):
        place.open()


def test_a_cache_without_room_is_told(hub, commit, monkeypatch, tmp_path):
    place = locate(f"{OF_HUB}@{commit}/top.parquet")
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"cannot be kept in .*/file \(Not a directory\)"):
        place.open()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HfApi, "hf_hub_download", full)
    with pytest.raises(
        DiskFull, match=r"no space left in .*/file, .* set HF_HUB_CACHE to a folder on a larger"
    ):
        place.open()


def test_nothing_is_written(hub, commit, tmp_path):
    place = locate(f"{OF_HUB}/top.parquet")
    for write in (
        lambda: place.create(b""),
        lambda: place.draft(),
        lambda: place.publish(tmp_path, None),
        lambda: place.remove(),
    ):
        with pytest.raises(StoreError, match="datasets on the hub are only read"):
            write()
    with pytest.raises(ValueError, match="hf:// is read only: give a path, or a URI of an object store"):
        Output(uri=OF_HUB)
