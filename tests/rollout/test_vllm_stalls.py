"""What the server engine does about servers that stall: with servers that run no vLLM, so that the stalls are ours.

A stall lasts until the test is over, and what the engine allows a healthy server is more than any machine takes. So
whoever waits for a stalled server waits for ever, and no duration has to be measured.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from p2o.config.schema import LoraTuning, RandomModel, VllmServerRollout
from p2o.policy.model import Policy, load_policy
from p2o.rollout import vllm, vllm_client
from p2o.rollout.engine import EngineError
from p2o.rollout.vllm import VllmEngine
from p2o.types import Generation, Prompt, SamplingParams

PROMPTS = [Prompt((5, 6, 7), seed) for seed in range(4)]
SHORT = SamplingParams(1.0, 3)
FOREVER_S = 3600.0
WAIT_S = 60.0
"""For what comes true within a second or two on any machine that is not stuck."""


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, f"it did not come true within {WAIT_S:.0f} s"
        time.sleep(0.01)


class Stub(ThreadingHTTPServer):
    """Has adapters and completes with one and the same token. Requests whose path is ``stalled`` are not answered while
    the test runs, and completions not before ``completes`` is set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.adapters: set[str] = set()
        self.asked: list[str] = []
        self.stalled = ""
        self.stuck = 0
        """Requests that stall at present."""
        self.completes = threading.Event()
        self.completes.set()
        self.over = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Clients that went away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_GET(self) -> None:
        stub, path = self.server, self.path.removeprefix("/v1/")
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        stub.asked.append(path)
        if path == stub.stalled:
            stub.stuck += 1
            stub.over.wait()
            return
        if path == "models":
            cards = [{"id": "base", "parent": None, "max_model_len": 100}]
            reply: object = {"data": [*cards, *({"id": name, "parent": "base"} for name in stub.adapters)]}
        elif path == "completions":
            stub.completes.wait()
            count = body["max_tokens"]
            logprobs = {"token_logprobs": [-1.0] * count}
            reply = {"choices": [{"token_ids": [9] * count, "logprobs": logprobs, "finish_reason": "length"}]}
        else:
            reply = "ok"
            (stub.adapters.add if path.startswith("load") else stub.adapters.discard)(body["lora_name"])
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def stubs() -> Iterator[tuple[Stub, Stub]]:
    pair = Stub(), Stub()
    yield pair
    for stub in pair:
        stub.over.set()
        stub.completes.set()
        stub.shutdown()
        stub.server_close()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    return load_policy(RandomModel(path=str(folder), dtype="float32"), LoraTuning(r=4), seed=0)


@pytest.fixture
def engine(
    policy: Policy, stubs: tuple[Stub, Stub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., VllmEngine]]:
    """``engine(retry_s=...)``: an engine over the two servers, which believes what they say of the probe."""
    monkeypatch.setattr(vllm_client, "LEAVE_S", 1.0)
    monkeypatch.setattr(vllm_client, "MODELS_S", FOREVER_S)
    made: list[VllmEngine] = []

    def build(retry_s: float = FOREVER_S, late_s: float = FOREVER_S, **needs: int) -> VllmEngine:
        monkeypatch.setattr(vllm, "LATE_S", late_s)
        urls = [stub.url for stub in stubs]
        rollout = VllmServerRollout(urls=urls, timeout_s=FOREVER_S, retry_s=retry_s, max_retries=3)
        one = VllmEngine(policy, rollout, needs, tmp_path)
        monkeypatch.setattr(one.probe, "check", lambda *_: 0.0)
        made.append(one)
        return one

    yield build
    for one in made:
        one.close()


@pytest.mark.parametrize("stalled", ["models", "load_lora_adapter", "completions"])
def test_a_sync_is_not_held_up_where_another_server_is_ready(
    stalled: str,
    engine: Callable[..., VllmEngine],
    stubs: tuple[Stub, Stub],
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, (bad, good) = engine(late_s=1.0), stubs
    bad.stalled = stalled
    one.sync(0)
    assert bad.stuck == 1, "it was asked, and nobody waited for the answer"
    assert f"{bad.url} is dropped: it did not take the adapter within 1 s" in caplog.text
    assert one.scalars()["drops"] == 1
    asked = len(bad.asked)
    one.sync(1)
    assert len(one.generate(PROMPTS, SHORT, version=1)) == 4
    assert len(bad.asked) == asked, "it is left alone until rollout.retry_s has passed"
    assert len(good.adapters) == 1


def test_a_dropped_server_is_asked_again_beside_the_work(
    engine: Callable[..., VllmEngine], stubs: tuple[Stub, Stub], caplog: pytest.LogCaptureFixture
) -> None:
    one, (bad, good) = engine(retry_s=0.5, late_s=1.0), stubs
    bad.stalled = "models"
    one.sync(0)
    bad.stalled = ""
    good.completes.clear()
    made: list[Generation] = []
    work = threading.Thread(target=lambda: made.extend(one.generate(PROMPTS, SHORT, version=0)), daemon=True)
    work.start()
    until(lambda: f"{bad.url} answers again" in caplog.text)
    assert bad.adapters == good.adapters != set()
    assert not made, "the work is still under way"
    good.completes.set()
    work.join(WAIT_S)
    assert len(made) == len(PROMPTS)


def test_where_all_are_dropped_all_are_asked_again(engine: Callable[..., VllmEngine], stubs: tuple[Stub, Stub]) -> None:
    one = engine(retry_s=0.2)
    for each, stub in zip(one._servers, stubs, strict=True):
        each._timeout_s = 0.5
        stub.stalled = "models"
    with pytest.raises(EngineError, match=r"after 3 waits .*rollout\.max_retries"):
        one.sync(0)
    until(lambda: min(len(stub.asked) for stub in stubs) > 1)
    stubs[1].stalled, one._servers[1]._timeout_s = "", FOREVER_S
    one.sync(0)
    assert len(one.generate(PROMPTS, SHORT, version=0)) == 4


def test_the_end_does_not_wait_for_a_server_that_stalls(
    engine: Callable[..., VllmEngine], stubs: tuple[Stub, Stub]
) -> None:
    one, (bad, good) = engine(), stubs
    one.sync(0)
    bad.stalled = "unload_lora_adapter"
    one.close()
    assert bad.stuck == 1, "it was told, and nobody waited for the answer"
    assert good.adapters == set()
    assert not one._thread.is_alive()
    one.close()


def test_lengths_that_a_server_cannot_hold_are_named(
    engine: Callable[..., VllmEngine], stubs: tuple[Stub, Stub]
) -> None:
    one = engine(**{"rollout.max_prompt_tokens + rollout.max_new_tokens": 101})
    with pytest.raises(EngineError, match=r"rollout\.max_new_tokens may come to 101 tokens.* 100: .*--max-model-len"):
        one.sync(0)


def test_adapters_are_handed_over_in_the_runs_folder(engine: Callable[..., VllmEngine], tmp_path: Path) -> None:
    one = engine()
    one.sync(0)
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 1
    one.close()
    assert list(tmp_path.iterdir()) == []
