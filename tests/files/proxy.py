"""A proxy in front of the tests' S3 server: it counts requests, and lets some fail as its faults say.

It speaks HTTP/1.1 over plain sockets, and streams bodies both ways. It does not know what a job wants.
"""

import contextlib
import http.client
import os
import socket
import socketserver
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from obstore.store import S3Store

from tests.files import messages
from tests.files.faults import ENDINGS, Fault, Kind
from tests.files.messages import Method
from tests.files.s3 import S3Server

_ERRORS: dict[Kind, tuple[int, bytes]] = {
    "slow_down": (503, messages.error("SlowDown", "Please reduce your request rate.")),
    "error_500": (
        500,
        messages.error("InternalError", "We encountered an internal error. Please try again."),
    ),
}
_CONDITIONS = ("if-match", "if-none-match")
_OF_THE_CONNECTION = ("connection", "keep-alive", "expect", "transfer-encoding")
_BLOCK_BYTES = 1 << 16
_UPSTREAM_TIMEOUT_S = 60
_CLOSING_TIMEOUT_S = 5


class Proxy:
    """What a test sees of the proxy. All of it may be used while requests run."""

    def __init__(self, server: S3Server, faults: Iterable[Fault] = ()) -> None:
        self.server = server
        self.counts: Counter[Method] = Counter()
        self.requests: list[tuple[Method, str]] = []  # in the order of their arrival
        self.met: Counter[Kind] = Counter()  # requests that met a fault
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._matched: dict[Fault, int] = dict.fromkeys(faults, 0)
        self._listener = _Listener(self)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    @property
    def environ(self) -> dict[str, str]:
        """As `S3Server.environ`, through this proxy."""
        return replace(self.server, endpoint=self.endpoint).environ

    def store(self, **options: Any) -> S3Store:
        """As `S3Server.store`, through this proxy."""
        return replace(self.server, endpoint=self.endpoint).store(**options)

    def add(self, fault: Fault) -> None:
        """Applies a fault from the next request on. A fault that is there already starts to count anew."""
        with self._lock:
            self._matched.pop(fault, None)
            self._matched[fault] = 0

    def remove(self, fault: Fault) -> None:
        with self._lock:
            del self._matched[fault]

    def clear(self) -> None:
        """Removes all faults. Counts and requests stay."""
        with self._lock:
            self._matched.clear()

    def arrived(self, method: Method, key: str) -> dict[Kind, Fault]:
        """Records a request and returns the faults that it meets: of those that end it, the first added."""
        meets: dict[Kind, Fault] = {}
        with self._lock:
            self.counts[method] += 1
            self.requests.append((method, key))
            for fault, matched in self._matched.items():
                is_taken = fault.kind in meets or (fault.kind in ENDINGS and not ENDINGS.isdisjoint(meets))
                if is_taken or not fault.matches(method, key):
                    continue
                self._matched[fault] = matched + 1
                if fault.is_due(matched):
                    meets[fault.kind] = fault
            self.met.update(meets.keys())
        return meets

    # In threads of the test's process, not in a process of its own: the test reads counts and adds faults
    # directly, and the job that the test kills or stops is usually another process.
    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield
        finally:
            self.ended.set()
            self._listener.end()
            thread.join()
        if self._listener.errors:
            raise self._listener.errors[0]


@contextlib.contextmanager
def faulty(server: S3Server, faults: Iterable[Fault] = ()) -> Iterator[Proxy]:
    """A proxy in front of the server, with some faults to begin with."""
    proxy = Proxy(server, faults)
    with proxy.running():
        yield proxy


class _Listener(socketserver.ThreadingTCPServer):
    """A thread for each connection. `errors` are the proxy's own, not those of clients that went away."""

    request_queue_size = 128

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.errors: list[BaseException] = []
        self._open: set[Any] = set()
        super().__init__(("127.0.0.1", 0), _Connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):
            self.errors.append(error)

    def end(self) -> None:
        self.shutdown()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()  # joins the connections' threads


class _Connection(BaseHTTPRequestHandler):
    """A client's connection: its requests one after the other, each with its own connection to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener
    _left = 0  # bytes of the request's body that are still to be read

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self) -> None:
        if "Transfer-Encoding" in self.headers:
            raise NotImplementedError(f"{self.command} {self.path}: chunked uploads are not supported")
        self._left = int(self.headers.get("Content-Length", 0))
        method, key = messages.read_target(self.command, self.path, "x-amz-copy-source" in self.headers)
        body = self._body()
        if method == "delete" and self.command == "POST":
            deletes = b"".join(body)
            body, key = iter([deletes]), "\n".join(messages.deleted_keys(deletes))
        self._meet(self.server.proxy.arrived(method, key), body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def _meet(self, meets: dict[Kind, Fault], body: Iterator[bytes]) -> None:
        if (fault := meets.get("slow")) and self.server.proxy.ended.wait(fault.seconds):
            self.close_connection = True
        elif refused := [refusal for kind, refusal in _ERRORS.items() if kind in meets]:
            self._refuse(*refused[0])
        elif fault := meets.get("cut_upload"):
            for _ in self._body(self._left // 2):
                pass
            self._cut(fault)
        else:
            self._forward(meets, body)

    def _body(self, most: int | None = None) -> Iterator[bytes]:
        """The rest of the request's body, or some of it. Raises ConnectionError if the client breaks off."""
        end = 0 if most is None else self._left - most
        while self._left > end:
            block = self.rfile.read(min(_BLOCK_BYTES, self._left - end))
            if not block:
                raise ConnectionAbortedError("the client ended within a request's body")
            self._left -= len(block)
            yield block

    def _forward(self, meets: dict[Kind, Fault], body: Iterator[bytes]) -> None:
        left_out = _OF_THE_CONNECTION + (_CONDITIONS if "ignore_conditions" in meets else ())
        address = urlsplit(self.server.proxy.server.endpoint).netloc
        upstream = http.client.HTTPConnection(address, timeout=_UPSTREAM_TIMEOUT_S)
        with contextlib.closing(upstream):
            # Host, too, stays as the client sent it: the request's signature covers it.
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in left_out:
                    upstream.putheader(name, value)
            upstream.endheaders()
            for block in body:
                upstream.send(block)
            with upstream.getresponse() as answer:
                self._pass_on(answer, meets)

    def _pass_on(self, answer: http.client.HTTPResponse, meets: dict[Kind, Fault]) -> None:
        if fault := meets.get("cut_after"):
            answer.read()
            self._cut(fault)
        elif (fault := meets.get("hide_in_listing")) and answer.status == 200:
            listing = messages.without_keys(answer.read(), fault.finds)
            self._send_head(answer, str(len(listing)))
            self.wfile.write(listing)
        elif fault := meets.get("cut_download"):
            self._stream(answer, (answer.length or 0) // 2)
            self._cut(fault)
        else:
            self._stream(answer, sys.maxsize)

    def _stream(self, answer: http.client.HTTPResponse, most: int) -> None:
        self._send_head(answer, answer.headers.get("Content-Length"))
        while most and (block := answer.read(min(_BLOCK_BYTES, most))):
            self.wfile.write(block)
            most -= len(block)

    def _send_head(self, answer: http.client.HTTPResponse, length: str | None) -> None:
        """The answer's status and headers. If its length is not known, the connection ends after the body."""
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in (*_OF_THE_CONNECTION, "content-length"):
                self.send_header(name, value)
        if length is not None:
            self.send_header("Content-Length", length)
        elif self.command != "HEAD" and answer.status not in (204, 304):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()

    def _refuse(self, status: int, body: bytes) -> None:
        for _ in self._body():
            pass
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _cut(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            return
        # Reads on until the client closes: closing with unread data would reset the connection.
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_CLOSING_TIMEOUT_S)
            while self.connection.recv(_BLOCK_BYTES):
                pass
