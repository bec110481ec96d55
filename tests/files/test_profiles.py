"""Where S3 credentials come from: the environment, else the files of Amazon's tools, else roles."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from routelmt_batch.errors import StoreRefused
from routelmt_batch.files import bucket
from routelmt_batch.files.profiles import profile_credentials
from routelmt_batch.files.uris import locate

CREDENTIALS = """
[default]
aws_access_key_id = AKIADEFAULT
aws_secret_access_key = s3cr3t
[nightly]
aws_access_key_id = AKIANIGHTLY
aws_secret_access_key = s3cr3t
"""
CONFIG = """
[default]
region = eu-north-1
[profile nightly]
region = eu-west-3
[profile broken]
credential_process = /bin/false
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with the files of Amazon's tools, and no credentials in the environment."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_DEFAULT_REGION", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(CREDENTIALS)
    (tmp_path / ".aws" / "config").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def signed_by(monkeypatch):
    """A store that answers 404 to everything; returns access key and region of the next request's signature."""
    seen: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")

        def ask() -> tuple[str, str]:
            bucket._store.cache_clear()
            assert not locate("s3://corpus/a").exists()
            key, region = re.search(r"Credential=([^/]*)/\d+/([^/]*)/", seen[-1]).groups()
            return key, region

        yield ask
        server.shutdown()
        thread.join()
    bucket._store.cache_clear()


def test_the_default_profile_signs_if_the_environment_has_no_credentials(home, signed_by):
    assert signed_by() == ("AKIADEFAULT", "eu-north-1")


def test_aws_profile_names_another(home, signed_by, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nightly")
    assert signed_by() == ("AKIANIGHTLY", "eu-west-3")


def test_the_environments_region_wins(home, signed_by, monkeypatch):
    monkeypatch.setenv("AWS_REGION", "us-east-2")
    assert signed_by() == ("AKIADEFAULT", "us-east-2")


def test_the_environments_credentials_win(home, signed_by, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    assert signed_by() == ("AKIAENVIRONMENT", "us-east-1")


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("nightli", r"s3://corpus: no credentials from the AWS profile nightli \(.*could not be found\)"),
        ("broken", r"s3://corpus: no credentials from the AWS profile broken .*aws sso login"),
    ],
)
def test_a_profile_without_credentials_is_told(home, signed_by, monkeypatch, profile, message):
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(StoreRefused, match=message):
        signed_by()


@pytest.mark.parametrize("root", ["gs://corpus", "az://corpus"])
def test_other_clouds_have_their_own_chain(home, root):
    assert profile_credentials(root, {"AWS_PROFILE": "nightly"}) is None


def test_public_buckets_and_machines_without_files_need_no_profile(home, tmp_path):
    assert profile_credentials("s3://corpus", {"AWS_SKIP_SIGNATURE": "true"}) is None
    nowhere = {"AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_CONFIG_FILE": "/nowhere"}
    assert profile_credentials("s3://corpus", nowhere) is None
