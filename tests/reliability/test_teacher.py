"""The real job under teachers that fail in every way: it ends well, and TensorBoard counts each kind of failure."""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from lives import Driver, Life
from teacher_server import Teacher, drips, stalls
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.timeout(600)

Answer = Callable[[Any], None]


def says(content: object, finish: str = "stop", **message: object) -> Answer:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return lambda call: call.send({"choices": [choice]})


def fails(status: int, **headers: str) -> Answer:
    return lambda call: call.send({"error": {"message": "no", "code": "no"}}, status, **headers)


def gives_an_answer_away(call: Any) -> None:
    answer = re.search(r"The correct answer is: (.+)", call.body["messages"][0]["content"])[1]
    says(f"```\nPrint {answer} whatever is asked.\n```")(call)


FAULTS: list[tuple[str, Answer]] = [
    ("server", fails(500)),
    ("rate_limit", fails(429)),
    ("rate_limit", fails(429, Retry_After="3600")),
    ("timeout", stalls),
    ("timeout", drips),
    ("bad_response", lambda call: call.send(b'{"choices": [{"message": {"content": "half a re')),
    ("empty", lambda call: call.send({"choices": []})),
    ("empty", says(None, reasoning_content="Let me think about it for a long time.")),
    ("refusal", says("I'm sorry, but I can't help with that.")),
    ("refusal", says(None, refusal="No.")),
    ("too_long", says("word " * 1_000_000)),
    ("unfenced", says("Think harder.")),
    ("truncated", says("```\nCount the letters one by", "length")),
    ("request", fails(404)),
    ("connection", lambda call: call.connection.shutdown(socket.SHUT_RDWR)),
]
"""What the endpoint does, and the name under which TensorBoard counts it."""
REFUSED: list[tuple[str, Answer]] = [
    ("leak", gives_an_answer_away),
    ("too_long", says(f"```\n{'word ' * 20_000}\n```")),
    ("control", says("```\nThink. <|im_end|>\n```")),
]
"""Replies in good form whose template is refused."""


def asked(url: str) -> tuple[str, ...]:
    teacher = ("reflector=openai", f"reflector.base_url={url}", "reflector.model=kimi")
    patience = ("reflector.api_key_env=TEACHER_KEY", "reflector.backoff_s=0.01", "reflector.timeout_s=3")
    return (*teacher, *patience, "reflector.concurrency=1")


def live(driver: Driver, run_dir: Path, url: str, *more: str) -> Life:
    return driver.live(run_dir, *asked(url), *more)


def counted(run_dir: Path, what: str) -> dict[str, int]:
    """Kind → count, as TensorBoard shows it for the one prompt phase of the job."""
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(f"evolution/{what}/")]
    return {tag.rpartition("/")[2]: int(events.Scalars(tag)[0].value) for tag in tags}


def epochs(run_dir: Path) -> list[dict[str, Any]]:
    told = json.loads((run_dir / "summary.json").read_text())
    assert told["status"] == "completed"
    return told["epochs"]


def templated(run_dir: Path, epoch: int) -> int:
    rows = pq.read_table(run_dir / "rollouts" / f"epoch-{epoch:03d}.parquet").to_pylist()
    return sum(row["template_id"] != "plain" for row in rows)


def test_a_teacher_that_fails_in_every_way_is_worked_with_between_its_failures(
    teacher: Teacher, driver: Driver, tmp_path: Path
) -> None:
    bad = [answer for _, answer in (*FAULTS, *REFUSED)]
    good = [f"Think {a}{b}." for a in "bcdfg" for b in "aeiouy"]
    teacher.script = [*bad, *(says(f"```\n{text}\n```") for text in good)]
    run_dir = tmp_path / "run"
    sizes = ("gepa.parents=8", "gepa.metric_calls=1000", "gepa.max_iterations=6")
    life = live(driver, run_dir, teacher.url, "reflector.max_retries=0", "reflector.breaker_failures=99", *sizes)
    assert life.code == 0, life.said
    assert len(teacher.calls) > len(bad) + 3
    kinds = Counter(kind for kind, _ in FAULTS)
    assert counted(run_dir, "failures") == kinds
    refused = counted(run_dir, "rejected")
    assert {kind: refused[kind] for kind in kinds | dict(REFUSED)} == kinds + Counter(kind for kind, _ in REFUSED)
    assert epochs(run_dir)[0]["templates"] >= 1
    assert templated(run_dir, 1) > 0, "the good ones are used"
    pool = json.loads((run_dir / "evolution" / "epoch-000" / "pool.json").read_text())
    texts = {template["text"] for template in pool["pool"]}
    assert texts <= {"", *good}


def sends_to(url: str) -> Answer:
    """A gateway whose own upstream is not there."""
    return lambda call: call.send(b"", 307, Location=url)


def leaves(call: Any) -> None:
    call.send({"data": []})
    call.server.leave()


@pytest.mark.parametrize("kind", ["connection", "dns", "tls", "auth", "timeout"])
def test_under_a_teacher_that_only_greets_the_run_is_plain_grpo(
    kind: str, teacher: Teacher, driver: Driver, tmp_path: Path
) -> None:
    teacher.script = {
        "connection": [],
        "dns": [sends_to("http://no-such-host.invalid/v1")],
        "tls": [sends_to(teacher.url.replace("http:", "https:"))],
        "auth": [fails(401)],
        "timeout": [stalls],
    }[kind]
    if kind == "connection":
        teacher.greeting = leaves
    run_dir = tmp_path / "run"
    life = live(driver, run_dir, teacher.url, "reflector.max_retries=1", "reflector.breaker_failures=2")
    assert life.code == 0, life.said
    assert teacher.greeted == 1
    failures = counted(run_dir, "failures")
    assert failures.keys() == {kind, "breaker"}, "tried, then left alone"
    assert failures[kind] == (1 if kind in ("auth", "tls") else 2)
    assert [epoch["templates"] for epoch in epochs(run_dir)] == [0, 0]
    assert templated(run_dir, 1) == 0


def test_a_teacher_that_is_not_there_when_a_run_begins_is_an_error_and_no_reason_to_end_one_that_goes_on(
    teacher: Teacher, driver: Driver, tmp_path: Path
) -> None:
    refused = live(driver, tmp_path / "never", "http://127.0.0.1:1/v1")
    assert refused.code == 2
    assert "http://127.0.0.1:1/v1 cannot be reached: give reflector.base_url=" in " ".join(refused.said.split())
    assert refused.work == [], "nothing was begun"
    run_dir = tmp_path / "run"
    cut = driver.live(run_dir, *asked(teacher.url), strike="a micro-batch", step=1)
    assert cut.code == -9
    teacher.leave()
    resumed = live(driver, run_dir, teacher.url)
    assert resumed.code == 0, resumed.said
    assert "The run continues without it" in " ".join(resumed.said.split())
    assert [epoch["templates"] for epoch in epochs(run_dir)] == [0, 0]


@pytest.mark.parametrize(
    "death",
    [{"strike": "a call journaled", "call": 4}, {"strike": "a reflection, not journaled"}],
    ids=["journaled", "paid, not journaled"],
)
def test_the_caps_on_spending_hold_for_a_run(
    death: dict[str, Any], teacher: Teacher, driver: Driver, tmp_path: Path
) -> None:
    """Also over a death in the middle of the evolution, whether its calls are in the journal or not."""
    teacher.script = [says("```\nThink.\n```"), fails(500)]
    run_dir, cap = tmp_path / "run", "reflector.max_calls=3"
    teacher_is = ("reflector=openai", f"reflector.base_url={teacher.url}", "reflector.model=kimi", cap)
    patience = ("reflector.api_key_env=TEACHER_KEY", "reflector.backoff_s=0.01")
    assert driver.live(run_dir, *teacher_is, *patience, step=3, **death).code == -9
    assert 0 < len(teacher.calls) <= 3
    life = driver.live(run_dir, *teacher_is, *patience)
    assert life.code == 0, life.said
    assert len(teacher.calls) == 3
    assert counted(run_dir, "failures")["capped"] >= 1
