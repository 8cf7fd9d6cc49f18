from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from teacher_server import Teacher, drips, lists, stalls

from p2o.config.schema import OpenAIReflector as EndpointConfig
from p2o.evolution.reflectors import Feedback, Reflection, ReflectionJob, ReflectorError, UnreachableError, endpoint
from p2o.evolution.reflectors.openai import OpenAIReflector
from p2o.rollout.ledger import Ledger
from p2o.types import Outcome, Phase

KEY = "sk-planted-0123456789"
FENCED = "My thoughts.\n```\nCount letter by letter.\n```"

Answer = Callable[[Any], None]


SPENT = Path("spent.json")
PATIENCE_S = 60.0
"""For what takes a fraction of a second, unless it never comes."""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was spent is kept in a file; each test has one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "MODELS_S", PATIENCE_S)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the reflector would have waited before each further attempt; nobody does."""
    sleep, asked = asyncio.sleep, []

    async def note(seconds: float) -> None:
        if seconds:
            asked.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    return asked


def completion(content: object = FENCED, finish: str = "stop", **usage: object) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"id": "c", "choices": [{"message": message, "finish_reason": finish, "index": 0}], "usage": usage}


def says(content: object = FENCED, **usage: object) -> Answer:
    return lambda call: call.send(completion(content, **usage))


def fails(status: int, code: str = "", **headers: str) -> Answer:
    return lambda call: call.send({"error": {"message": f"no, {KEY}", "code": code}}, status, **headers)


def cut_short(call: Any) -> None:
    call.send_response(200)
    call.send_header("Content-Length", "5000")
    call.end_headers()
    call.wfile.write(json.dumps(completion()).encode())
    call.close_connection = True


def job(seed: int = 0, response: str = "There are 2.") -> ReflectionJob:
    example = Feedback("How many r in berry?", response, "2", Outcome.WRONG, "7", 0.0, "stop")
    return ReflectionJob("Be careful.", (example,), seed)


def reflector(url: str, ledger: Ledger | None = None, **fields: Any) -> OpenAIReflector:
    defaults: dict[str, Any] = {"timeout_s": PATIENCE_S, "max_retries": 0, "backoff_s": 0.01, "max_new_tokens": 50}
    config = EndpointConfig(base_url=url, model="kimi", api_key_env="TEACHER_KEY", **{**defaults, **fields})
    return OpenAIReflector(
        config, max_template_tokens=60, count_tokens=count_words, ledger=ledger or Ledger(), spent=SPENT
    )


def count_words(text: str) -> int:
    return len(text.split())


def ask(url: str, **fields: Any) -> Reflection:
    (reflection,) = reflector(url, **fields).reflect([job()])
    return reflection


def test_answers_in_the_order_of_the_jobs_and_books_what_they_cost(teacher: Any) -> None:
    """All four are under way at once, and the last one is answered first."""
    all_there, answered = threading.Barrier(4, timeout=PATIENCE_S / 2), [threading.Event() for _ in range(5)]
    answered[4].set()

    def echo_backwards(call: Any) -> None:
        number = int(call.body["messages"][0]["content"].split("There are ")[1].split(".")[0])
        all_there.wait()
        answered[number + 1].wait(PATIENCE_S / 2)
        call.send(completion(f"```text\ntemplate {number}\n```", prompt_tokens=100, completion_tokens=7))
        answered[number].set()

    teacher.script = [echo_backwards]
    ledger = Ledger()
    jobs = [job(response=f"There are {i}.") for i in range(4)]
    reflections = reflector(teacher.url, ledger, temperature=0.6).reflect(jobs)
    assert [r.text for r in reflections] == [f"template {i}" for i in range(4)]
    counts = ledger.by_phase[Phase.REFLECTION]
    assert (counts.reflection_calls, counts.prompt_tokens, counts.generated_tokens) == (4, 400, 28)
    assert counts.seconds > 0
    path, headers, body = teacher.calls[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("kimi", 0.6, 50)


def test_concurrency_is_bounded(teacher: Any) -> None:
    running, most, two = 0, 0, threading.Event()

    def slow(call: Any) -> None:
        nonlocal running, most
        with teacher.lock:
            running += 1
            most = max(most, running)
        if most == 2:
            two.set()
        two.wait(PATIENCE_S / 2)
        time.sleep(0.05)  # for a third one to come, if it may
        with teacher.lock:
            running -= 1
        call.send(completion())

    teacher.script = [slow]
    assert all(r.text for r in reflector(teacher.url, concurrency=2).reflect([job(i) for i in range(6)]))
    assert most == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (fails(401), "auth"),
        (fails(403), "auth"),
        (fails(404), "request"),
        (fails(400, "context_length_exceeded"), "too_long"),
        (fails(429), "rate_limit"),
        (fails(500), "server"),
        (fails(503), "server"),
        (lambda call: call.send(b'{"choices": [{"message": {"content": "half a re'), "bad_response"),
        (lambda call: call.send(b"<html>It works!</html>"), "bad_response"),
        (lambda call: call.send(b"[" * 100_000), "bad_response"),
        (lambda call: call.send(b"\xff\xfe\x00"), "bad_response"),
        (lambda call: call.send({"error": "overloaded"}), "bad_response"),
        (lambda call: call.send({"choices": {"message": "no list"}}), "bad_response"),
        (lambda call: call.send({"choices": [{"message": {"content": 42}}]}), "bad_response"),
        (lambda call: cut_short(call), "bad_response"),
        (lambda call: call.send({"choices": []}), "empty"),
        (says(None), "empty"),
        (says(""), "empty"),
        (lambda call: call.send({"choices": [{"message": {"reasoning_content": "hm", "content": None}}]}), "empty"),
        (lambda call: call.send({"choices": [{"message": {"refusal": "No.", "content": None}}]}), "refusal"),
        (says("I'm sorry, but I can't help with that."), "refusal"),
        (lambda call: call.send(completion("so", "content_filter")), "refusal"),
        (says("A better instruction: think."), "unfenced"),
        (says("```\nCount the letters one by"), "truncated"),
        (says("```\n\n```"), "empty"),
        (says("word " * 1_000_000), "too_long"),
        (lambda call: call.connection.shutdown(socket.SHUT_RDWR), "connection"),
    ],
)
def test_every_failure_has_a_name(teacher: Any, answer: Answer, kind: str) -> None:
    teacher.script = [answer]
    it = reflector(teacher.url)
    (reflection,) = it.reflect([job()])
    assert (reflection.text, reflection.error) == (None, kind)
    assert it.failures == {kind: 1}
    assert len(teacher.calls) == 1
    assert KEY not in repr(reflection)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "http://no-such-host.invalid/v1"])
def test_endpoints_that_are_not_there(url: str) -> None:
    assert ask(url).error in ("connection", "dns")


def test_tls_to_a_plain_server_is_a_tls_failure(teacher: Any) -> None:
    teacher.script = [says()]
    assert ask(teacher.url.replace("http:", "https:"), max_retries=3).error == "tls"


def test_a_stall_ends_at_the_deadline(teacher: Any) -> None:
    teacher.script = [stalls]
    assert ask(teacher.url, timeout_s=0.3).error == "timeout"


def test_a_slow_drip_ends_at_the_deadline(teacher: Any) -> None:
    teacher.script = [drips]
    assert ask(teacher.url, timeout_s=0.4).error == "timeout"


def test_of_an_endless_body_little_is_read(teacher: Any) -> None:
    sent = 0

    def flood(call: Any) -> None:
        nonlocal sent
        call.send_response(200)
        call.send_header("Content-Length", str(10**12))
        call.end_headers()
        while True:
            sent += call.wfile.write(b" " * 2**16)

    teacher.script = [flood]
    assert ask(teacher.url).error == "too_long"
    assert sent < 50 * 2**20, "what was in the buffers on the way included"


def test_what_may_pass_is_tried_again(teacher: Any) -> None:
    teacher.script = [fails(500), fails(429), lambda call: call.send({"choices": []}), says()]
    it = reflector(teacher.url, max_retries=3)
    (reflection,) = it.reflect([job()])
    assert reflection.text == "Count letter by letter."
    assert it.failures == {"server": 1, "rate_limit": 1, "empty": 1}
    assert it.ledger.by_phase[Phase.REFLECTION].reflection_calls == 4


def test_retries_are_bounded_and_wait_longer_each_time(teacher: Any, waits: list[float]) -> None:
    teacher.script = [fails(500)]
    assert ask(teacher.url, max_retries=3, backoff_s=0.1).error == "server"
    assert len(teacher.calls) == 4
    assert len(waits) == 3
    assert all(0.5 * 0.1 * 2**i <= wait <= 0.1 * 2**i for i, wait in enumerate(waits))


@pytest.mark.parametrize("status", [401, 404])
def test_what_would_come_again_is_not_tried_again(teacher: Any, status: int) -> None:
    teacher.script = [fails(status)]
    ask(teacher.url, max_retries=3)
    assert len(teacher.calls) == 1


def test_an_exhausted_quota_is_not_tried_again(teacher: Any) -> None:
    teacher.script = [fails(429, "insufficient_quota")]
    assert ask(teacher.url, max_retries=3).error == "rate_limit"
    assert len(teacher.calls) == 1


@pytest.mark.parametrize("value", ["0.4", "date"])
def test_retry_after_is_honoured(teacher: Any, value: str, waits: list[float]) -> None:
    header = formatdate(time.time() + 3600, usegmt=True) if value == "date" else value
    teacher.script = [fails(429, Retry_After=header), says()]
    assert ask(teacher.url, max_retries=1, max_wait_s=3600).text
    (wait,) = waits
    if value == "date":  # it has whole seconds, and some have passed meanwhile
        assert 3599 - PATIENCE_S < wait <= 3600
    else:
        assert wait == 0.4


def test_a_server_that_asks_for_too_long_a_wait_is_given_up_on(teacher: Any, waits: list[float]) -> None:
    teacher.script = [fails(429, Retry_After="3600")]
    assert ask(teacher.url, max_retries=5, max_wait_s=60).error == "rate_limit"
    assert (len(teacher.calls), waits) == (1, [])


@pytest.mark.parametrize("value", ["soon", "nan", "-5", "Wed, 99 Foo 2026"])
def test_a_nonsensical_retry_after_is_ignored(teacher: Any, value: str) -> None:
    teacher.script = [fails(429, Retry_After=value), says()]
    assert ask(teacher.url, max_retries=1).text


def test_the_breaker_leaves_a_dead_endpoint_alone(teacher: Any) -> None:
    teacher.script = [fails(500)]
    it = reflector(teacher.url, breaker_failures=3, breaker_cooldown_s=60, concurrency=1)
    reflections = it.reflect([job(i) for i in range(6)])
    assert [r.error for r in reflections] == ["server"] * 3 + ["breaker"] * 3
    assert len(teacher.calls) == 3
    assert [r.error for r in it.reflect([job()])] == ["breaker"]


def test_a_wrong_key_opens_the_breaker_at_once(teacher: Any) -> None:
    teacher.script = [fails(401)]
    reflections = reflector(teacher.url, concurrency=1).reflect([job(i) for i in range(5)])
    assert [r.error for r in reflections] == ["auth"] + ["breaker"] * 4


def test_the_breaker_probes_after_its_cooldown_and_closes_on_success(teacher: Any) -> None:
    teacher.script = [fails(500), fails(500), says()]
    it = reflector(teacher.url, breaker_failures=2, breaker_cooldown_s=3600, concurrency=1)
    assert [r.error for r in it.reflect([job(0), job(1), job(2)])] == ["server", "server", "breaker"]
    it._closed_until = 0.0  # the cooldown is over
    assert all(r.text for r in it.reflect([job(i) for i in range(3)]))


def test_an_open_breaker_lets_one_call_through_a_cooldown(teacher: Any) -> None:
    teacher.script = [fails(500)]
    it = reflector(teacher.url, breaker_failures=2, breaker_cooldown_s=3600, concurrency=3)
    it.reflect([job(0), job(1)])
    for _ in range(2):
        it._closed_until = 0.0  # the cooldown is over
        reflections = it.reflect([job(i) for i in range(3)])
        assert [r.error for r in reflections] == ["server", "breaker", "breaker"], "the others wait for what one finds"
    assert len(teacher.calls) == 4


def test_the_cap_on_calls_counts_retries_and_holds_across_a_resume(teacher: Any) -> None:
    teacher.script = [fails(500)]
    it = reflector(teacher.url, max_retries=5, max_calls=4)
    assert [r.error for r in it.reflect([job()])] == ["capped"]
    assert len(teacher.calls) == 4
    for known in (it.ledger, Ledger()):  # the ledger of a checkpoint may know nothing of them
        resumed = reflector(teacher.url, Ledger.from_json(known.to_json()), max_calls=4)
        assert [r.error for r in resumed.reflect([job()])] == ["capped"]
    SPENT.unlink()  # a run that was begun before the file was kept
    resumed = reflector(teacher.url, it.ledger, max_calls=4)
    assert [r.error for r in resumed.reflect([job()])] == ["capped"]
    assert len(teacher.calls) == 4


def test_a_call_is_booked_before_it_is_made_and_stays_so_where_it_never_ends(teacher: Any) -> None:
    booked: list[dict[str, int]] = []

    def look(call: Any) -> None:
        booked.append(json.loads(SPENT.read_text()))
        call.send(completion(prompt_tokens=100, completion_tokens=7))

    teacher.script = [look]
    it = reflector(teacher.url, max_new_tokens=5000)
    it.reflect([job()])
    assert booked[0]["calls"] == 1
    assert 5000 < booked[0]["tokens"] < 6000
    assert json.loads(SPENT.read_text()) == {"calls": 1, "tokens": 107}
    SPENT.write_text(json.dumps(booked[0]))  # killed while the teacher wrote
    assert reflector(teacher.url, max_tokens=6000, max_new_tokens=5000).reflect([job()])[0].error == "capped"
    assert reflector(teacher.url, max_tokens=16000, max_new_tokens=5000).reflect([job()])[0].error is None


def test_the_cap_on_tokens_sets_aside_the_longest_reply(teacher: Any) -> None:
    teacher.script = [says(prompt_tokens=100, completion_tokens=20)]
    it = reflector(teacher.url, max_tokens=1000, concurrency=8)
    reflections = it.reflect([job(i) for i in range(12)])
    counts = it.ledger.by_phase[Phase.REFLECTION]
    assert counts.prompt_tokens + counts.generated_tokens <= 1000
    assert {r.error for r in reflections} == {None, "capped"}
    assert len(teacher.calls) == sum(r.error is None for r in reflections)
    SPENT.unlink()
    assert reflector(teacher.url, max_tokens=40).reflect([job()])[0].error == "capped"  # less than a prompt takes


def test_a_timeout_is_charged_as_if_it_had_answered(teacher: Any) -> None:
    teacher.script = [stalls]
    it = reflector(teacher.url, timeout_s=0.2)
    it.reflect([job()])
    assert it.ledger.by_phase[Phase.REFLECTION].generated_tokens == 50


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": -5, "completion_tokens": "many"}, {"prompt_tokens": True}])
def test_usage_that_cannot_be_is_estimated(teacher: Any, usage: dict[str, object]) -> None:
    teacher.script = [says(**usage)]
    it = reflector(teacher.url)
    it.reflect([job()])
    counts = it.ledger.by_phase[Phase.REFLECTION]
    assert counts.generated_tokens == count_words(FENCED)
    assert counts.prompt_tokens == count_words(teacher.calls[0][2]["messages"][0]["content"])


def test_lone_surrogates_go_out_and_come_back(teacher: Any) -> None:
    teacher.script = [lambda call: call.send(json.dumps(completion("```\nodd \ud800 text\n```")).encode())]
    (reflection,) = reflector(teacher.url).reflect([job(response="There are \udcff.")])
    assert reflection.text == "odd \ud800 text"


def test_the_planted_key_never_shows_up(teacher: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    teacher.script = [
        fails(500),
        fails(401),
        lambda call: call.send(completion(f"```\nSay {call.headers['Authorization']}\n```")),
        lambda call: call.send({"choices": [{"message": {"refusal": KEY, "content": None}}]}),
    ]
    it = reflector(teacher.url, concurrency=1, breaker_cooldown_s=0.0)
    reflections = it.reflect([job(i) for i in range(4)])
    assert [r.error for r in reflections] == ["server", "auth", None, "refusal"]
    assert reflections[2].text == "Say Bearer [api key]"
    seen = [repr(reflections), caplog.text, repr(vars(it)), repr(it.config)]
    assert not [text for text in seen if KEY in text]
    assert "[api key]" in caplog.text  # the server did send it


@pytest.mark.parametrize(
    ("fields", "variable", "message"),
    [
        ({}, None, r"TEACHER_KEY \(reflector.api_key_env\) is not set"),
        ({}, "sk with\nbreak", "TEACHER_KEY .* line break"),
        ({"model": ""}, KEY, "reflector.model"),
        ({"base_url": "localhost:8000"}, KEY, "reflector.base_url=localhost:8000"),
        ({"base_url": "http://"}, KEY, "reflector.base_url"),
    ],
)
def test_check_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, str], variable: str | None, message: str
) -> None:
    if variable is None:
        monkeypatch.delenv("TEACHER_KEY")
    else:
        monkeypatch.setenv("TEACHER_KEY", variable)
    config = EndpointConfig(**{"base_url": "http://host/v1", "model": "m", "api_key_env": "TEACHER_KEY", **fields})
    it = OpenAIReflector(config, max_template_tokens=9, count_tokens=count_words, ledger=Ledger(), spent=SPENT)
    with pytest.raises(ReflectorError, match=message) as caught:
        it.check()
    assert "sk with" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/v1", r"http://127\.0\.0\.1:1/v1 cannot be reached: give reflector\.base_url=.*connection"),
        ("http://no-such-host.invalid/v1", "cannot be reached: .*reflector=strategies.*dns"),
        ("https", "cannot be reached: .*OPENAI_BASE_URL.*tls"),
        ("wrong key", r"refuses the key in the environment variable TEACHER_KEY .*export the key.*auth: status 401"),
    ],
)
def test_check_finds_out_that_nobody_is_there(url: str, message: str, teacher: Teacher) -> None:
    teacher.greeting = fails(401)
    address = {"https": teacher.url.replace("http:", "https:"), "wrong key": teacher.url}.get(url, url)
    with pytest.raises(UnreachableError, match=message) as caught:
        reflector(address).check()
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (lists("kimi", "other"), ""),
        (fails(404), ""),
        (lambda call: call.send(b"<html>It works!</html>"), ""),
        (fails(503), "does not say which models it has [server"),
        (fails(429), "does not say which models it has [rate_limit"),
        (stalls, "does not say which models it has [timeout"),
        (lists("other"), "does not list reflector.model=kimi among its 1 models: give one of them"),
    ],
)
def test_what_may_pass_or_be_meant_is_only_told(
    greeting: Answer, told: str, teacher: Teacher, caplog: pytest.LogCaptureFixture
) -> None:
    teacher.greeting = greeting
    it = reflector(teacher.url, timeout_s=0.5 if greeting is stalls else PATIENCE_S)
    it.check()
    assert teacher.greeted == 1
    assert told in caplog.text
    assert bool(caplog.records) == bool(told)
    assert KEY not in caplog.text
    assert it.ledger.by_phase[Phase.REFLECTION].reflection_calls == 0


def test_whom_it_asks_is_told_without_a_password(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://me:{KEY}@127.0.0.1:1/v1")
    with pytest.raises(UnreachableError, match=r"^http://127\.0\.0\.1:1/v1 cannot be reached") as caught:
        OpenAIReflector(
            EndpointConfig(model="m", api_key_env="TEACHER_KEY"),
            max_template_tokens=9,
            count_tokens=count_words,
            ledger=Ledger(),
            spent=SPENT,
        ).check()
    assert KEY not in str(caught.value)
