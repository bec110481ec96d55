"""No credential leaves the environment: not into a job's files, its logs, its reports or its messages."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from routelmt_batch.files import bucket
from tests.files.s3 import s3_server

ID, SECRET, TOKEN = (
    "AKIAIOSFODNN7EXAMPLE",
    "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "FwoGZXIvYXdzEBYaDKtemp",
)
# What S3 answers to a wrong secret key: it repeats the request, the access key's id included.
DENIED = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>SignatureDoesNotMatch</Code><Message>The request '
    "signature we calculated does not match the signature you provided.</Message>"
    f"<AWSAccessKeyId>{ID}</AWSAccessKeyId><StringToSign>AWS4-HMAC-SHA256 x-amz-security-token:{TOKEN}"
    "</StringToSign></Error>"
).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def denying():
    """The endpoint of a store that answers 403 to everything."""

    class Denying(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(DENIED)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(DENIED)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

        def log_message(self, format, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Denying) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{listener.server_address[1]}"
        listener.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    """Credentials in the environment, and no options of a store: those come from the spec."""
    options = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ALLOW_HTTP")
    for name in options:  # set first, so that what the command sets is undone
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    bucket._store.cache_clear()
    yield
    bucket._store.cache_clear()


def storage(endpoint: str) -> dict[str, object]:
    return {"aws_endpoint_url": endpoint, "aws_region": "us-east-1", "aws_allow_http": True}


def check_free_of_secrets(*texts: str | bytes) -> None:
    for text in texts:
        data = text.encode() if isinstance(text, str) else text
        for secret in (ID, SECRET, TOKEN):
            assert secret.encode() not in data


def check_no_file_has_secrets(folder: Path) -> None:
    check_free_of_secrets(*(path.read_bytes() for path in folder.rglob("*") if path.is_file()))


def test_a_job_leaves_none(server, corpus, make_spec, invoke, tmp_path):
    server.put_folder(corpus, "in")
    spec = make_spec(
        input__uri=server.uri("in"), output__uri=server.uri("out"), storage=storage(server.endpoint)
    )
    for command in (("run", spec), ("run", spec, "--log-format", "json"), ("report", server.uri("out"))):
        answer = invoke(*command)
        assert answer.exit_code == 0, answer.output
        check_free_of_secrets(answer.output)
    keys = server.keys("out")
    for name in ("_job/spec.yaml", "_job/manifest.json", "reports/job.json", "_SUCCESS"):
        assert f"out/{name}" in keys
    check_free_of_secrets(*(server.read(key) for key in keys))
    check_no_file_has_secrets(tmp_path)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"input__uri": "s3://wrong/in"}, "s3://wrong/in: no such bucket"),
        ({"output__uri": "s3://wrong/out"}, "no such bucket"),
    ],
)
def test_a_job_with_a_wrong_bucket_leaves_none(server, make_spec, invoke, tmp_path, keys, message):
    answer = invoke("run", make_spec(storage=storage(server.endpoint), **keys), "--log-format", "json")
    assert answer.exit_code == 2 and message in answer.output
    check_free_of_secrets(answer.output)
    check_no_file_has_secrets(tmp_path)


@pytest.mark.parametrize("key", ["input__uri", "output__uri", "models__small__source"])
def test_a_job_on_a_store_that_denies_access_leaves_none(denying, make_spec, invoke, tmp_path, key):
    answer = invoke("run", make_spec(storage=storage(denying), **{key: "s3://corpus/there"}))
    assert answer.exit_code == 2
    assert "s3://corpus/there" in answer.output and "the store denies access" in answer.output
    check_free_of_secrets(answer.output)
    check_no_file_has_secrets(tmp_path)
