"""A proxy in front of an HTTP server that spoils a share of its answers: 503, or the connection breaks off."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class FaultyProxy:
    """``with FaultyProxy(url, share=0.05) as proxy:`` spoils that share of the requests to ``proxy.url``.

    A third of the spoilt requests are answered with 503 and not passed on, a third break off before an answer
    *after* they were passed on, a third break off in the middle of the answer. ``proxy.counts`` tells how many.
    """

    def __init__(self, upstream: str, share: float, seed: int = 0) -> None:
        self.counts: Counter[str] = Counter()
        self.read: list[str] = []  # paths of GETs, without what follows a question mark
        self.refused = ""  # a GET whose path ends so is answered with 403
        self._upstream = urlsplit(upstream)
        self._share, self._random, self._lock = share, random.Random(seed), threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def draw(self) -> str:
        """What happens to the next request."""
        with self._lock:
            spoilt = self._random.random() < self._share
            fate = self._random.choice(["503", "no answer", "half an answer"]) if spoilt else "passed"
            self.counts[fate] += 1
        return fate

    def forward(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The upstream's answer; 503 while it is away."""
        connection = http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except OSError:
            return 503, [], b""
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fate = self.owner.draw()
        if fate == "503":
            self._answer(503, [], b"")
            return
        if self.owner.refused and self.command == "GET" and self.path.endswith(self.owner.refused):
            self._answer(403, [], b"")
            return
        if self.command == "GET":
            self.owner.read.append(self.path.partition("?")[0])
        status, headers, data = self.owner.forward(self.command, self.path, self.headers, body)
        if fate == "passed":
            self._answer(status, headers, data)
            return
        if fate == "half an answer":
            self._head(status, headers, len(data))
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
        # Lingering for no time makes the end a reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self._head(status, headers, len(data))
        if self.command != "HEAD":
            self.wfile.write(data)

    def _head(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response_only(status)
        # A HEAD is answered with the length of what a GET would bring.
        told = [value for name, value in headers if name.lower() == "content-length" and self.command == "HEAD"]
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", told[0] if told else str(length))
        self.end_headers()

    def finish(self) -> None:
        with suppress(OSError):  # broken off on purpose
            super().finish()

    def log_message(self, *_: object) -> None:
        """Say nothing."""
