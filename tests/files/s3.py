"""An S3 server for tests: moto's, in a process of its own, with one bucket. It knows no job.

Kills and stops of a process under test do not touch the server, and the server ends with the process that
started it, also if that one is killed.
"""

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from tests.conftest import REPOSITORY
from tests.files import messages

BUCKET = "corpus"
_LOG = "s3-server.log"
_POLL_S = 0.5
_INCOMPLETE = messages.error("IncompleteBody", "The body is shorter than its Content-Length.")


@dataclass(frozen=True)
class S3Server:
    """A running server and its bucket. The methods ask the server itself, not a proxy in front of it."""

    endpoint: str
    bucket: str = BUCKET

    @property
    def environ(self) -> dict[str, str]:
        """What a client needs: for a subprocess, or to be set with monkeypatch."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def uri(self, path: str = "") -> str:
        return f"s3://{self.bucket}/{path}".rstrip("/")

    def store(self, **options: Any) -> S3Store:
        """obstore's client of the bucket, independent of the environment."""
        client: Any = {"allow_http": True, **options.pop("client_options", {})}
        return S3Store(
            self.bucket,
            endpoint=self.endpoint,
            access_key_id="test",
            secret_access_key="test",
            region="us-east-1",
            client_options=client,
            **options,
        )

    def put(self, key: str, data: bytes) -> None:
        obstore.put(self.store(), key, data)

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Uploads each file of a local folder to prefix/its path in the folder."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.put(f"{prefix}/{file.relative_to(folder).as_posix()}", file.read_bytes())

    def keys(self, prefix: str = "") -> list[str]:
        """All keys below a prefix, sorted; a prefix is whole path segments."""
        pages = obstore.list(self.store(), prefix=prefix or None)
        return sorted(meta["path"] for page in pages for meta in page)

    def read(self, key: str) -> bytes:
        """An object's bytes. Raises FileNotFoundError."""
        return bytes(obstore.get(self.store(), key).bytes())

    def download(self, prefix: str, folder: Path) -> Path:
        """Writes each object below a prefix to folder/the rest of its key; returns the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for key in self.keys(prefix):
            file = folder / key.removeprefix(prefix).lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.read(key))
        return folder


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server with an empty bucket. The folder gets its log and, while it runs, its temporary files."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / _LOG
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid())],
            cwd=REPOSITORY,
            env={**os.environ, "TMPDIR": str(folder.resolve())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,  # Ctrl-C in a terminal does not end it before the tests have ended
        )
    with process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().decode().strip()
            if not port:
                raise RuntimeError(f"the S3 server did not start. Its log, {log}, ends:\n{_end_of(log)}")
            server = S3Server(f"http://127.0.0.1:{port}")
            _make_bucket(server)
            yield server
        finally:
            process.kill()  # it has nothing to save


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _make_bucket(server: S3Server) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"{server.endpoint}/{server.bucket}", method="PUT")
    opener.open(request, timeout=30).close()


# What follows runs in the server's process.


class _OneAtATime:
    """moto's application, one request at a time, each with its whole body.

    moto checks If-None-Match and If-Match and then writes, without a lock. Two creates of one key at the same
    moment can both succeed, which S3 rules out.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length)  # before the lock: a slow upload delays no other request
        if len(body) < length:
            start_response("400 Bad Request", [("Content-Length", str(len(_INCOMPLETE)))])
            return [_INCOMPLETE]
        environ["wsgi.input"] = io.BytesIO(body)
        with self._lock:
            return self._application(environ, start_response)


def _serve(parent: int) -> None:
    """Serves on a free port, which it prints, until it is killed or `parent` is gone."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    application = _OneAtATime(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    print(server.server_port, flush=True)  # it listens already: a request that comes now waits
    server.serve_forever()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
