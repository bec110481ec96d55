"""The HTTP side of a Ray head's job server, as far as Ray's own client asks for it: it takes jobs and runs none.

It keeps every byte that it is sent, so that a test can search them. test_cluster.py has a real head.
"""

import contextlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


class JobServer:
    """`jobs` are the submitted jobs as Ray describes them, by id. All of them run."""

    def __init__(self) -> None:
        self.received: list[bytes] = []  # request lines, headers, bodies, and the files of uploaded archives
        self.jobs: dict[str, dict[str, Any]] = {}
        self.environment: list[dict[str, Any]] = []  # the runtime_env of each job
        self.url = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any] | list[Any]]:
        *_, kind, name = ["", "", *path.strip("/").split("/")]
        if path == "/api/version":
            answer = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
            return 200, answer
        if path.startswith("/api/packages/"):
            return (200, {}) if method == "PUT" else (404, {})
        if method == "POST" and path == "/api/jobs/":
            job = json.loads(body)
            self.environment.append(job.pop("runtime_env"))
            self.jobs[job["submission_id"]] = {**job, "type": "SUBMISSION", "status": "RUNNING"}
            return 200, {"job_id": job["submission_id"], "submission_id": job["submission_id"]}
        if path == "/api/jobs/":
            return 200, list(self.jobs.values())
        if kind == "jobs" and name in self.jobs:
            return 200, self.jobs[name]
        return 404, {"error": f"{method} {path}: not known here"}

    def keep(self, head: str, body: bytes) -> None:
        self.received += [head.encode(), body]
        if zipfile.is_zipfile(io.BytesIO(body)):
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                self.received += [archive.read(name) for name in archive.namelist()]


@contextlib.contextmanager
def job_server() -> Iterator[JobServer]:
    jobs = JobServer()

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            jobs.keep(f"{self.requestline}\n{self.headers}", body)
            status, value = jobs.answer(self.command, self.path, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        jobs.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield jobs
        finally:
            server.shutdown()
