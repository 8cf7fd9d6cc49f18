"""Stands for p2o.rollout.vllm_serve at the other end of the socket: notes what it is asked, and does as it is told."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any

from p2o.rollout.vllm_serve import end_with_parent


class Stub(ThreadingMixIn, UnixStreamServer):
    """``note`` names the file of what it was asked; ``dies``, ``stalls`` and ``refuses`` a thing that it is asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options["uds"], Handler)
        self.options = options
        self.adapters: list[str] = []
        self.lock = threading.Lock()

    def note(self, asked: str) -> None:
        with self.lock, Path(self.options["note"]).open("a") as file:
            file.write(f"{asked}\n")


class Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        asked = name_of(self.path, body)
        options = self.server.options
        self.server.note(asked)
        if options.get("dies") == asked:
            print("Traceback: out of memory", file=sys.stderr, flush=True)
            os._exit(3)
        if options.get("stalls") == asked:
            time.sleep(600)
        content = json.dumps(self.reply(asked, body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.do_GET()

    def reply(self, asked: str, body: dict[str, Any]) -> Any:
        adapters = self.server.adapters
        if asked == "models":
            cards = [{"id": "base", "parent": None, "max_model_len": 64}]
            return {"data": cards + [{"id": name, "parent": "base"} for name in adapters]}
        if asked in ("generate", "probe"):
            count = body["max_tokens"]
            logprobs = {"token_logprobs": [-1.0] * count}
            choice = {"token_ids": [9] * count, "logprobs": logprobs, "finish_reason": "length"}
            return {"choices": [choice], "usage": {"prompt_tokens_details": {"cached_tokens": 2}}}
        if asked == "load_lora_adapter":
            adapters.append(body["lora_name"])
        if asked == "unload_lora_adapter":
            adapters.remove(body["lora_name"])
        return {"success": self.server.options.get("refuses") != asked}

    def log_message(self, *_: object) -> None:
        """Nothing but what a test tells it."""


def name_of(path: str, body: dict[str, Any]) -> str:
    """What a request asks for, in a word."""
    if path == "/v1/completions":
        return "probe" if body.get("ignore_eos") else "generate"
    return body["method"] if path == "/collective_rpc" else path.removeprefix("/v1").removeprefix("/").partition("?")[0]


def main() -> None:
    end_with_parent()
    options = json.load(sys.stdin)
    if words := options.get("fails"):
        sys.exit(words)
    time.sleep(options.get("sleeps", 0.0))
    stub = Stub(options)
    stub.note("start")
    if os.fork() == 0:  # as vLLM has its engine in another process
        stub.note(f"pid {os.getpid()}")
        time.sleep(600)
        os._exit(0)
    stub.serve_forever()


if __name__ == "__main__":
    main()
