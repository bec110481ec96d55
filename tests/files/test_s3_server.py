"""The tests' S3 server and its faults do what they say, and what obstore makes of each fault."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import obstore.store
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, PreconditionError

from tests.conftest import REPOSITORY
from tests.files.faults import Fault
from tests.files.proxy import Proxy, faulty
from tests.files.s3 import S3Server, s3_server

ONCE: Any = {"retry_config": {"max_retries": 0}}
SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(server: S3Server) -> Iterator[Proxy]:
    with faulty(server) as proxy:
        yield proxy


def create(proxy: Proxy, key: str, data: bytes, **options: Any) -> None:
    obstore.put(proxy.store(**options), key, data, mode="create")


def listed(proxy: Proxy, prefix: str) -> list[str]:
    return sorted(meta["path"] for page in obstore.list(proxy.store(), prefix) for meta in page)


# The server.


def test_a_folder_comes_back_as_it_was(server: S3Server, tmp_path: Path) -> None:
    files = {"a.txt": b"", "sub/b c.txt": b"\0\xff", "sub/deep/ü.txt": b"x" * 100_000}
    for name, data in files.items():
        path = tmp_path / "here" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    server.put_folder(tmp_path / "here", "folder/in")
    assert server.keys("folder") == sorted(f"folder/in/{name}" for name in files)
    assert server.keys("fold") == []
    assert server.read("folder/in/sub/b c.txt") == b"\0\xff"
    back = server.download("folder/in", tmp_path / "back")
    assert {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()} == files


def test_the_environment_leads_a_client_to_the_bucket(
    server: S3Server, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.put("environ/a", b"1")
    for given in (server, proxy):
        for name, value in given.environ.items():
            monkeypatch.setenv(name, value)
        store = obstore.store.from_url(server.uri())
        assert bytes(obstore.get(store, "environ/a").bytes()) == b"1"
    assert server.uri("environ/a") == "s3://corpus/environ/a"
    assert proxy.requests == [("get", "environ/a")]


@pytest.mark.parametrize(
    "name",
    [
        "a b.parquet",
        "50%.parquet",
        "%20.parquet",
        "ü/中文.parquet",
        "a+b",
        "k=v/x?y#z",
        "a&<b>'\"",
        "e\u0301",
    ],
)
def test_an_odd_key_survives(proxy: Proxy, name: str) -> None:
    key = f"odd/{name}"
    obstore.put(proxy.store(), key, name.encode())
    assert listed(proxy, "odd") == [key]
    assert bytes(obstore.get(proxy.store(), key).bytes()) == name.encode()
    obstore.delete(proxy.store(), key)
    assert listed(proxy, "odd") == []
    assert [request for request in proxy.requests if request[0] != "list"] == [
        ("put", key),
        ("get", key),
        ("delete", key),
    ]


@pytest.mark.parametrize("key", ["a//b", "..", "a/../b", "./a", "tab\t"])
def test_obstore_refuses_some_keys(proxy: Proxy, key: str) -> None:
    with pytest.raises(ValueError, match="Could not parse path"):
        obstore.put(proxy.store(), key, b"")
    assert proxy.requests == []


def test_one_of_many_creates_at_once_succeeds(server: S3Server) -> None:
    """Of 9 MiB: moto writes such bodies to disk, and without s3.py's lock several creates may succeed."""
    wins: list[tuple[int, int]] = []
    start = threading.Barrier(4)

    def compete(number: int) -> None:
        for turn in range(5):
            start.wait()
            with contextlib.suppress(AlreadyExistsError):
                obstore.put(server.store(), f"race/{turn}", bytes([number]) * (9 << 20), mode="create")
                wins.append((turn, number))

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [turn for turn, _ in sorted(wins)] == [0, 1, 2, 3, 4]
    assert [server.read(f"race/{turn}")[0] for turn, _ in wins] == [number for _, number in wins]


@pytest.mark.parametrize("through_proxy", [False, True])
def test_an_upload_that_breaks_off_leaves_nothing(
    server: S3Server, proxy: Proxy, through_proxy: bool
) -> None:
    host, port = (proxy if through_proxy else server).endpoint.removeprefix("http://").split(":")
    head = "".join(f"{name}: {value}\r\n" for name, value in {"Host": host, **SIGNED}.items())
    with socket.create_connection((host, int(port))) as client:
        client.sendall(f"PUT /corpus/half HTTP/1.1\r\n{head}Content-Length: 10\r\n\r\nhalf".encode())
        client.shutdown(socket.SHUT_WR)
        assert client.recv(12) == (b"" if through_proxy else b"HTTP/1.1 400")
    assert server.keys("half") == []


def test_the_server_ends_with_a_killed_process(tmp_path: Path) -> None:
    script = (
        "import pathlib, time; from tests.files.s3 import s3_server\n"
        f"with s3_server(pathlib.Path({str(tmp_path)!r})) as server: print(server.endpoint, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        endpoint = owner.stdout.readline().decode().strip()
        assert answers(endpoint)
        os.kill(owner.pid, signal.SIGKILL)
    give_up = time.monotonic() + 20
    while answers(endpoint) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert not answers(endpoint)


def answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=10).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


# What obstore makes of a store as it should be.


def test_creating_twice_is_refused(proxy: Proxy, server: S3Server) -> None:
    create(proxy, "twice", b"1")
    with pytest.raises(AlreadyExistsError):
        create(proxy, "twice", b"2")
    assert server.read("twice") == b"1"
    assert proxy.counts == {"put": 2}


def test_an_update_of_another_version_is_refused(proxy: Proxy, server: S3Server) -> None:
    first = obstore.put(proxy.store(), "update", b"1")
    obstore.put(proxy.store(), "update", b"2", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(proxy.store(), "update", b"3", mode={"e_tag": first["e_tag"]})
    with pytest.raises(PreconditionError):
        obstore.put(proxy.store(), "update-of-nothing", b"3", mode={"e_tag": first["e_tag"]})
    assert server.read("update") == b"2"


def test_a_read_of_another_version_is_refused(proxy: Proxy) -> None:
    create(proxy, "versions", b"1")
    with pytest.raises(PreconditionError):
        obstore.get(proxy.store(), "versions", options={"if_match": '"0"', "range": (0, 1)})


# The faults.


@pytest.mark.parametrize("kind", ["slow_down", "error_500"])
def test_errors_are_retried(proxy: Proxy, server: S3Server, kind: Any) -> None:
    proxy.add(Fault(kind, times=2))
    create(proxy, kind, b"1")
    assert server.read(kind) == b"1"
    assert (proxy.counts, proxy.met) == ({"put": 3}, {kind: 2})


@pytest.mark.parametrize(("kind", "code"), [("slow_down", "SlowDown"), ("error_500", "InternalError")])
def test_errors_that_last_are_told(proxy: Proxy, server: S3Server, kind: Any, code: str) -> None:
    proxy.add(Fault(kind))
    with pytest.raises(GenericError, match=f"<Code>{code}</Code>"):
        create(proxy, f"lasting/{kind}", b"1", retry_config={"max_retries": 1})
    assert server.keys("lasting") == []
    assert proxy.met == {kind: 2}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", [1, 1_000_000])
def test_a_cut_upload_does_not_reach_the_server(
    proxy: Proxy, server: S3Server, size: int, reset: bool
) -> None:
    key = f"cut-upload/{size}-{reset}"
    proxy.add(Fault("cut_upload", reset=reset))
    with pytest.raises(GenericError, match="error sending request"):
        create(proxy, key, b"x" * size, **ONCE)
    assert server.keys(key) == []
    assert (proxy.counts, proxy.met) == ({"put": 1}, {"cut_upload": 1})


@pytest.mark.parametrize("reset", [False, True])
def test_a_request_without_an_answer_was_carried_out(proxy: Proxy, server: S3Server, reset: bool) -> None:
    key = f"unanswered-{reset}"
    proxy.add(Fault("cut_after", reset=reset))
    with pytest.raises(GenericError, match="error sending request"):
        create(proxy, key, b"1", **ONCE)
    assert server.read(key) == b"1"


def test_a_create_whose_connection_is_closed_is_retried(proxy: Proxy, server: S3Server) -> None:
    proxy.add(Fault("cut_upload", times=2))
    create(proxy, "closed", b"1" * 1_000_000)
    assert len(server.read("closed")) == 1_000_000
    assert proxy.counts == {"put": 3}


@pytest.mark.parametrize("kind", ["cut_upload", "cut_after"])
def test_a_create_whose_connection_is_reset_is_not_retried(proxy: Proxy, server: S3Server, kind: Any) -> None:
    """The caller must find out whether its object is there."""
    proxy.add(Fault(kind, times=1, reset=True))
    with pytest.raises(GenericError, match="ConnectionReset|BrokenPipe"):
        create(proxy, f"reset/{kind}", b"1" * 1_000_000)
    assert (f"reset/{kind}" in server.keys("reset")) == (kind == "cut_after")
    assert proxy.counts == {"put": 1}


def test_an_overwrite_whose_connection_is_reset_is_retried(proxy: Proxy, server: S3Server) -> None:
    proxy.add(Fault("cut_upload", times=1, reset=True))
    obstore.put(proxy.store(), "reset-overwrite", b"1")
    assert server.read("reset-overwrite") == b"1"
    assert proxy.counts == {"put": 2}


def test_a_create_without_an_answer_is_retried_and_meets_its_own_object(
    proxy: Proxy, server: S3Server
) -> None:
    proxy.add(Fault("cut_after", times=1))
    with pytest.raises(AlreadyExistsError):
        create(proxy, "own", b"1")
    assert server.read("own") == b"1"
    assert (proxy.counts, proxy.met) == ({"put": 2}, {"cut_after": 1})


def test_an_update_without_an_answer_is_retried_and_refused(proxy: Proxy, server: S3Server) -> None:
    first = obstore.put(proxy.store(), "own-update", b"1")
    proxy.add(Fault("cut_after", times=1))
    with pytest.raises(PreconditionError):
        obstore.put(proxy.store(), "own-update", b"2", mode={"e_tag": first["e_tag"]})
    assert server.read("own-update") == b"2"


def test_an_overwrite_without_an_answer_is_retried_and_succeeds(proxy: Proxy) -> None:
    proxy.add(Fault("cut_after", times=1))
    obstore.put(proxy.store(), "own-overwrite", b"1")
    assert proxy.counts == {"put": 2}


def test_a_cut_download_is_continued(proxy: Proxy, server: S3Server) -> None:
    data = bytes(range(256)) * 8000
    result = obstore.put(server.store(), "download", data)
    proxy.add(Fault("cut_download", times=1))
    proxy.add(Fault("cut_download", times=1, reset=True))
    options: Any = {"range": (10, 1_500_010), "if_match": result["e_tag"]}
    assert bytes(obstore.get(proxy.store(), "download", options=options).bytes()) == data[10:1_500_010]
    assert (proxy.counts, proxy.met) == ({"get": 3}, {"cut_download": 2})
    proxy.add(Fault("cut_download"))
    with pytest.raises(GenericError, match="IncompleteBody"):
        obstore.get(proxy.store(**ONCE), "download", options=options).bytes()


def test_a_cut_download_never_mixes_two_versions(proxy: Proxy, server: S3Server) -> None:
    server.put("mixed", b"1" * 1_000_000)
    proxy.add(Fault("cut_download", times=1))
    answer = obstore.get(proxy.store(), "mixed")  # only the head so far
    server.put("mixed", b"2" * 1_000_000)
    with pytest.raises(GenericError, match="IncompleteBody"):
        answer.bytes()
    assert proxy.counts == {"get": 2}


def test_a_cut_listing_is_not_retried(proxy: Proxy) -> None:
    proxy.add(Fault("cut_download", method="list", times=1))
    with pytest.raises(GenericError, match="Error getting list response body"):
        listed(proxy, "any")
    assert proxy.counts == {"list": 1}


def test_slow_waits_before_it_forwards(proxy: Proxy, server: S3Server) -> None:
    server.put("slow", b"1")
    proxy.add(Fault("slow", method="head", seconds=0.3))
    start = time.monotonic()
    obstore.head(proxy.store(), "slow")
    assert time.monotonic() - start >= 0.3


def test_a_slow_request_does_not_hold_up_the_proxys_end(server: S3Server) -> None:
    start = time.monotonic()
    with faulty(server, [Fault("slow", seconds=60)]) as slow:

        def late() -> None:
            with contextlib.suppress(GenericError):
                create(slow, "late", b"", **ONCE)

        waiting = threading.Thread(target=late)
        waiting.start()
        while not slow.requests:
            time.sleep(0.01)
    waiting.join()
    assert time.monotonic() - start < 30
    assert server.keys("late") == []


def test_hidden_keys_are_left_out_of_listings_only(proxy: Proxy, server: S3Server) -> None:
    for name in ("a", "b&b", "sub/a", "hidden/a"):
        server.put(f"hide/{name}", b"1")
    proxy.add(Fault("hide_in_listing", key=r"b&|/hidden/"))
    assert listed(proxy, "hide") == ["hide/a", "hide/sub/a"]
    found = obstore.list_with_delimiter(proxy.store(), "hide")
    assert [meta["path"] for meta in found["objects"]] == ["hide/a"]
    assert found["common_prefixes"] == ["hide/sub"]
    assert bytes(obstore.get(proxy.store(), "hide/b&b").bytes()) == b"1"
    assert counted_keys(proxy, "list-type=2&prefix=hide/") == 2
    assert counted_keys(proxy, "list-type=2&prefix=hide/&delimiter=/") == 2
    proxy.clear()
    assert counted_keys(proxy, "list-type=2&prefix=hide/") == 4


def counted_keys(proxy: Proxy, query: str) -> int:
    request = urllib.request.Request(f"{proxy.endpoint}/{proxy.server.bucket}?{query}", headers=SIGNED)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(ElementTree.fromstring(answer.read()).findtext("{*}KeyCount") or -1)


def test_a_store_without_conditional_writes(proxy: Proxy, server: S3Server) -> None:
    first = obstore.put(proxy.store(), "conditions", b"1")
    proxy.add(Fault("ignore_conditions"))
    create(proxy, "conditions", b"2")
    assert server.read("conditions") == b"2"
    obstore.put(proxy.store(), "conditions", b"3", mode={"e_tag": first["e_tag"]})
    assert server.read("conditions") == b"3"
    with pytest.raises(PreconditionError):  # reads keep theirs
        obstore.get(proxy.store(), "conditions", options={"if_match": first["e_tag"]})


# The rules, and what the proxy records.


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (Fault("slow_down"), "xxxx"),
        (Fault("slow_down", times=2), "xx.."),
        (Fault("slow_down", times=1, after=2), "..x."),
        (Fault("slow_down", after=3), "...x"),
        (Fault("slow_down", method="get"), "...."),
        (Fault("slow_down", method="put", key="[02]$"), "x.x."),
        (Fault("slow_down", key="[13]$", times=1, after=1), "...x"),
    ],
)
def test_which_requests_a_fault_meets(proxy: Proxy, fault: Fault, wanted: str) -> None:
    proxy.add(fault)
    found = ""
    for number in range(4):
        try:
            obstore.put(proxy.store(**ONCE), f"which/{number}", b"")
            found += "."
        except GenericError:
            found += "x"
    assert found == wanted


def test_faults_come_and_go(proxy: Proxy, server: S3Server) -> None:
    first, second = Fault("slow_down"), Fault("cut_after")
    proxy.add(first)
    proxy.add(second)
    with pytest.raises(GenericError, match="SlowDown"):  # the first one added ends the request
        create(proxy, "go", b"1", **ONCE)
    proxy.remove(first)
    with pytest.raises(GenericError, match="error sending request"):
        create(proxy, "go", b"1", **ONCE)
    proxy.clear()
    with pytest.raises(AlreadyExistsError):
        create(proxy, "go", b"1", **ONCE)
    assert proxy.met == {"slow_down": 1, "cut_after": 1}


def test_requests_are_recorded_in_order(proxy: Proxy) -> None:
    store = proxy.store()
    obstore.put(store, "kept/a", b"1")
    obstore.put(store, "kept/b", b"1" * (6 << 20), max_concurrency=1)
    obstore.head(store, "kept/a")
    obstore.get(store, "kept/a")
    obstore.copy(store, "kept/a", "kept/c")
    listed(proxy, "kept")
    obstore.delete(store, ["kept/a", "kept/b"])
    with pytest.raises(FileNotFoundError):
        obstore.head(store, "kept/a")
    assert proxy.requests == [
        ("put", "kept/a"),
        *[("multipart", "kept/b")] * 4,  # begun, two parts, completed
        ("head", "kept/a"),
        ("get", "kept/a"),
        ("copy", "kept/c"),
        ("list", "kept/"),
        ("delete", "kept/a\nkept/b"),
        ("head", "kept/a"),
    ]
    wanted = {"put": 1, "multipart": 4, "head": 2, "get": 1, "copy": 1, "list": 1, "delete": 1}
    assert proxy.counts == wanted


def test_a_request_that_the_proxy_cannot_read_fails_the_test(server: S3Server) -> None:
    with (
        pytest.raises(NotImplementedError, match="chunked uploads are not supported"),
        faulty(server) as proxy,
    ):
        request = urllib.request.Request(
            f"{proxy.endpoint}/corpus/chunked", data=iter([b"1"]), method="PUT", headers=SIGNED
        )
        with pytest.raises(OSError):
            urllib.request.urlopen(request, timeout=10)
