"""A Hugging Face hub for tests: the requests that huggingface_hub makes to read datasets and models.

Status codes and headers are the hub's own: https://huggingface.co/docs/hub/api and huggingface_hub's
`hf_raise_for_status`. Parquet files and weights are stored as LFS files: the hub redirects to another host for
them, which refuses requests with a token.
"""

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

PAGE_ENTRIES = 3  # of a list; the hub's own pages have 1,000


@dataclass
class Dataset:
    """A repository: files by path of each commit, and branches. `token`: who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    is_gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Move a branch to a new commit with exactly these files; gives its hash."""
        new = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[new], self.branches[branch] = files, new
        return new

    def commit_folder(self, folder: Path, branch: str = "main") -> str:
        """A commit with every file of a folder below `data/`, and a README."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {f"data/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in paths}
        return self.commit({"README.md": b"A test.", **files}, branch)


@dataclass
class Hub:
    """A running hub. `counts` has its requests by kind (info, tree, head) and the bytes of files that it sent. While
    `fails` is a status code, it is the answer to each request for an address that begins with `fails_at`."""

    endpoint: str
    datasets: dict[str, Dataset] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    fails: int = 0
    fails_at: str = "/"

    def dataset(self, name: str) -> Dataset:
        return self.datasets.setdefault(name, Dataset())

    def use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make it this process's hub, as HF_ENDPOINT and HF_HUB_CACHE do in a process that begins."""
        monkeypatch.setattr(constants, "ENDPOINT", self.endpoint)
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """An empty hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def large(path: str) -> bool:
    """Whether a file is stored as an LFS file."""
    return path.endswith((".parquet", ".safetensors"))


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        hub, url = self.server.hub, urlsplit(self.path)
        if hub.fails and self.path.startswith(hub.fails_at):
            return self._send(hub.fails)
        match [unquote(part) for part in url.path.strip("/").split("/")]:
            case ["lfs", *_] if self.headers["Authorization"]:
                return self._send(400)
            case ["lfs", owner, name, digest]:
                every = (
                    data
                    for files in hub.datasets[f"{owner}/{name}"].commits.values()
                    for data in files.values()
                )
                return self._send_file(next(data for data in every if sha256(data) == digest))
            case ["api", "datasets", owner, name]:
                return self._about(f"{owner}/{name}", "main", self._info)
            case ["api", "datasets", owner, name, "revision", revision]:
                return self._about(f"{owner}/{name}", revision, self._info)
            case ["api", "datasets", owner, name, "tree", revision, *path]:
                return self._about(
                    f"{owner}/{name}", revision, self._tree, "/".join(path), parse_qs(url.query)
                )
            case ["datasets", owner, name, "resolve", revision, *path]:
                return self._about(
                    f"{owner}/{name}", revision, self._resolve, "/".join(path), f"{owner}/{name}"
                )
            case ["api", "models", owner, name]:
                return self._about(f"{owner}/{name}", "main", self._info)
            case ["api", "models", owner, name, "revision", revision]:
                return self._about(f"{owner}/{name}", revision, self._info)
            case [owner, name, "resolve", revision, *path]:
                return self._about(
                    f"{owner}/{name}", revision, self._resolve, "/".join(path), f"{owner}/{name}"
                )
        return self._send(404)

    def do_HEAD(self):
        self.do_GET()

    def _about(self, name, revision, answer, *rest):
        dataset = self.server.hub.datasets.get(name)
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if dataset is None or (dataset.token and not dataset.is_gated and token != dataset.token):
            return self._send(404 if token else 401, code="RepoNotFound")
        commit = dataset.branches.get(revision, revision)
        if commit not in dataset.commits:
            return self._send(404, code="RevisionNotFound")
        if dataset.is_gated and token != dataset.token and answer == self._resolve:
            return self._send(403 if token else 401, code="GatedRepo")
        return answer(commit, dataset.commits[commit], *rest)

    def _info(self, commit, files):
        self.server.hub.counts["info"] += 1
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
            | (
                {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 130}}
                if large(path)
                else {}
            )
            for path, data in files.items()
        ]
        self._send_json({"_id": "0", "id": "any", "sha": commit, "siblings": siblings})

    def _tree(self, commit, files, folder, query):
        self.server.hub.counts["tree"] += 1
        below = f"{folder}/" if folder else ""
        entries = {}
        for path, data in files.items():
            if path.startswith(below):
                parts = path.removeprefix(below).split("/")
                for depth in range(1, len(parts)):
                    inner = below + "/".join(parts[:depth])
                    entries[inner] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": inner}
                entries[path] = {"type": "file", "oid": git_sha1(data), "size": len(data), "path": path}
                if large(path):
                    entries[path] |= {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 130}}
        if not entries:
            return self._send(404, code="EntryNotFound")
        if query["recursive"][0].lower() == "false":
            entries = {path: entry for path, entry in entries.items() if "/" not in path.removeprefix(below)}
        start = int(query.get("cursor", ["0"])[0])
        page = [entries[path] for path in sorted(entries)][start : start + PAGE_ENTRIES]
        headers = {}
        if start + PAGE_ENTRIES < len(entries):
            address = f"{self.server.hub.endpoint}{urlsplit(self.path).path}"
            after = f"recursive={query['recursive'][0]}&cursor={start + PAGE_ENTRIES}"
            headers = {"Link": f'<{address}?{after}>; rel="next"'}
        return self._send_json(page, headers)

    def _resolve(self, commit, files, path, name):
        self.server.hub.counts["head"] += self.command == "HEAD"
        headers = {"X-Repo-Commit": commit}
        if path not in files:
            return self._send(404, headers, code="EntryNotFound")
        data = files[path]
        if not large(path):
            return self._send_file(data, headers | {"ETag": f'"{git_sha1(data)}"'})
        linked = {"X-Linked-ETag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        address = f"http://localhost:{self.server.server_port}/lfs/{name}/{sha256(data)}?Signature=secret"
        return self._send(302, headers | linked | {"Location": address})

    def _send_file(self, data, headers=None):
        self.server.hub.counts["bytes"] += len(data) if self.command == "GET" else 0
        self._send(200, headers, data)

    def _send_json(self, value, headers=None):
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    def _send(self, status, headers=None, data=b"", code=""):
        self.send_response(status)
        headers = {
            **(headers or {}),
            **({"X-Error-Code": code} if code else {}),
            "Content-Length": str(len(data)),
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
