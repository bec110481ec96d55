"""How long a failing store is asked again, what its errors are told as, and a bucket's root."""

import pytest
from obstore.exceptions import GenericError

from routelmt_batch.corpus.shards import discover
from routelmt_batch.errors import StoreError, StoreRefused
from routelmt_batch.files import bucket
from routelmt_batch.files.answers import explained
from routelmt_batch.files.bucket import ObjectLocation
from routelmt_batch.files.uris import locate
from tests.files.s3 import s3_server

SECRET = "wJalrXUtnFEMI"
AWAY = "Generic S3 error: Error performing GET http://store/b/k - HTTP error: error sending request"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def environ(monkeypatch):
    """Sets variables; stores are opened anew."""

    def use(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket._store.cache_clear()

    yield use
    bucket._store.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the pauses move."""
    now = [1000.0]
    monkeypatch.setattr(bucket.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(bucket.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def test_an_outage_shorter_than_the_promise_is_waited_for(clock):
    def request():
        if clock[0] < 1170:
            raise GenericError(AWAY)
        return "answer"

    assert ObjectLocation("s3://b", "k")._tried(request) == "answer"


def test_a_longer_one_ends_with_1_after_three_minutes_in_all(clock):
    def request():
        raise GenericError(AWAY)

    with pytest.raises(StoreError, match="run the same command again") as error:
        ObjectLocation("s3://b", "k")._tried(request)
    assert type(error.value) is StoreError and error.value.exit_code == 1
    assert 170 <= clock[0] - 1000 <= 180


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("status code: 404 Not Found: <Code>NoSuchBucket</Code>", "no such bucket"),
        ("Server returned non-2xx status code: 403 Forbidden: ", "denies access"),
        ("Error performing PUT http://169.254.169.254/latest/api/token", "no credentials were found"),
        ('error sending request\n\nDebug: error: "Name or service not known"', "host is not known"),
        ("status code: 400 Bad Request: <Code>InvalidRegion</Code>", "refuses the request"),
    ],
)
def test_a_refusal_ends_with_2_at_once(clock, text, message):
    def request():
        raise GenericError(text)

    with pytest.raises(StoreRefused, match=message) as error:
        ObjectLocation("s3://b", "k")._tried(request)
    assert error.value.exit_code == 2 and clock[0] == 1000


@pytest.mark.parametrize(
    "text",
    [
        "Server returned non-2xx status code: 429 Too Many Requests",
        "status code: 409 Conflict: <Code>ConditionalRequestConflict</Code>",
        "status code: 400 Bad Request: <Code>RequestTimeout</Code>",
        "status code: 503 Service Unavailable: <Code>SlowDown</Code>",
    ],
)
def test_what_may_pass_is_no_refusal(text):
    assert type(explained("s3://b/k", GenericError(text))) is StoreError


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("minio:9000", "give a URL that begins with https:// or http://"),
        ("http://127.0.0.1:9 ", "has no spaces"),
        ("", "is empty in the environment"),
        (f"http://me:{SECRET}@127.0.0.1:9", "contains a login"),
    ],
)
def test_a_wrong_endpoint_in_the_environment_is_told(environ, name, value, message):
    environ(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", **{name: value})
    with pytest.raises(StoreRefused) as error:
        locate("s3://b/k").exists()
    assert f"s3://b: {name}" in str(error.value) and message in str(error.value)
    assert SECRET not in str(error.value)


def test_options_that_lack_something_are_told(environ, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    environ()
    with pytest.raises(StoreRefused, match="az://c: the store's options .*Account must be specified"):
        locate("az://c/k").exists()


def test_a_buckets_root_is_a_folder(running, environ):
    environ(**running.environ)
    running.put("a.parquet", b"x")
    root = locate(running.uri())
    assert root.stat() is None and root.is_folder()
    assert str(root / "data") == f"{root}/data"
    assert [name for name, _ in discover(running.uri())] == ["a.parquet"]
