"""A teacher behind an OpenAI-compatible API, for tests: a real HTTP server that answers as it is told to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Call"], None]


class Call(BaseHTTPRequestHandler):
    """One request to the teacher. A behaviour answers it with :meth:`send` or writes to ``wfile`` itself."""

    protocol_version = "HTTP/1.1"
    server: Teacher
    body: dict[str, Any]

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.calls)
            self.server.calls.append(
                (self.path, {name.lower(): value for name, value in self.headers.items()}, self.body)
            )
        script = self.server.script
        try:
            script[min(number, len(script) - 1)](self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def do_GET(self) -> None:
        """What is asked before a run begins: which models there are."""
        with self.server.lock:
            self.server.greeted += 1
        try:
            self.server.greeting(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, body: bytes | object, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Teacher(ThreadingHTTPServer):
    """A real HTTP server that plays ``script``, one behaviour a call; the last one is repeated for ever.

    ``greeting`` answers the question for its models, which is no call.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Call)
        self.script: list[Behaviour] = []
        self.greeting: Behaviour = lists("kimi")
        self.greeted = 0
        self.calls: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        pass

    def leave(self) -> None:
        """From now on nobody is there."""
        self.over.set()
        self.shutdown()
        self.server_close()


def stalls(call: Call) -> None:
    """No answer for as long as the teacher is there."""
    call.server.over.wait()


def drips(call: Call) -> None:
    """A byte now and then, and no end."""
    call.send_response(200)
    call.send_header("Content-Length", str(10**9))
    call.end_headers()
    while not call.server.over.wait(0.05):
        call.wfile.write(b" ")
        call.wfile.flush()


def lists(*models: str) -> Behaviour:
    """The answer to the question for the models."""
    return lambda call: call.send({"object": "list", "data": [{"id": model} for model in models]})


@contextmanager
def serving() -> Iterator[Teacher]:
    """A teacher that answers for as long as the block runs."""
    server = Teacher()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.leave()
