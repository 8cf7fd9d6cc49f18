"""Text that a model rewarded for fooling the grader could write. Nothing may crash, stall, run or be called right."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2o.config.schema import RewardConfig
from p2o.rewards import EXTRACT, GraderPool
from p2o.rewards.process import WorkerProcess
from p2o.types import Outcome, Problem

GOLDS = ["271828182", r"\frac{271828}{314159}", r"\sqrt{271829} + 3", "(271828, 314159]", "271828x^2 - 314159y"]
DEADLINE = 2.0
MEMORY_MB = 48
"""Beyond what a worker has when it is ready; some of the answers ask for more."""
SENTINEL = Path("/tmp") / "p2o-an-answer-was-executed"

BATCH = 20
COMMANDS = (
    r"\frac \sqrt \boxed{ \text{ \left( \right) \int \sum \cup \in \{ \} \begin{pmatrix} \end{pmatrix} "
    r"\pm \cdot \le \lim \log_ ^{ \binom \overline{ \ldots \% \circ \mathbb{R} \emptyset"
)
small = st.integers(0, 9)
huge = st.integers(10, 10**30)
term = st.one_of(
    small.map(str), huge.map(str), st.sampled_from(["x", "y", "e", "i", r"\pi", r"\infty", "n", "0", "-1", ""])
)


def repeated(text: str, low: int, high: int) -> st.SearchStrategy[str]:
    return st.integers(low, high).map(lambda count: text * count)


def nested(opening: str, closing: str, low: int = 1, high: int = 3000) -> st.SearchStrategy[str]:
    return st.builds(lambda count, inner: opening * count + inner + closing * count, st.integers(low, high), term)


towers = st.one_of(
    st.lists(st.integers(2, 99).map(str), min_size=2, max_size=40).map("^".join),
    st.lists(st.integers(2, 99).map(str), min_size=2, max_size=40).map("**".join),
    nested("9^{", "}", 1, 60),
    nested("2^(", ")", 1, 60),
    st.builds(lambda base, exponent: rf"{base}^{{{exponent}}}", huge, huge),
    st.builds(lambda number, count: f"{number}{'!' * count}", huge, st.integers(1, 8)),
    nested("(", "!)", 1, 8),
    st.builds(lambda n, k: rf"\binom{{{n}}}{{{k}}}", huge, huge),
    st.builds(lambda n: rf"\sqrt[{n}]{{{n}^{{{n}}}}}", huge),
    st.builds(lambda n, m: rf"\gcd({n}^{{{m}}}, {m}^{{{n}}})", huge, st.integers(2, 10**6)),
    st.builds(lambda n: rf"\sum_{{k=1}}^{{{n}}} k^{{k}}", huge),
    st.builds(lambda n: rf"\prod_{{k=1}}^{{{n}}} k!", huge),
    st.builds(lambda n: rf"\int_0^{{{n}}} e^{{x^{{x}}}} \sin(x^{{{n}}}) dx", huge),
    st.builds(lambda n: f"1e{n}", huge),
    st.builds(lambda n, m: rf"\cos({n}^{{{m}}})", huge, st.integers(2, 10**6)),
    st.builds(lambda n, m: rf"{n}^{{{m}}} \bmod {n}", huge, huge),
    st.builds(lambda n: rf"({'+'.join(f'x_{{{k}}}' for k in range(n))})^{{{n}}}", st.integers(2, 60)),
)
brackets = st.one_of(
    *(
        nested(opening, closing)
        for opening, closing in [
            ("(", ")"),
            ("[", "]"),
            ("{", "}"),
            (r"\{", r"\}"),
            (r"\left(", r"\right)"),
            ("|", "|"),
            (r"\sqrt{", "}"),
            (r"\frac{1}{", "}"),
            (r"\frac{", "}{2}"),
            (r"\text{", "}"),
            (r"\boxed{", "}"),
            ("-", ""),
            ("+", ""),
            ("f(", ")"),
            (r"\begin{pmatrix}", r"\end{pmatrix}"),
            (r"\sin", ""),
            ("x_{", "}"),
            ("((", ")"),
            (r"\lfloor", r"\rfloor"),
        ]
    ),
)
long_text = st.one_of(
    *(
        repeated(unit, 1, 1_000_000 // len(unit))
        for unit in [
            "1",
            "9",
            " ",
            "x",
            "\\",
            "$",
            "{",
            "}",
            "\\boxed{1}",
            "\\boxed{",
            "\\boxed{1} or ",
            "1+",
            "1,",
            "answer: 1 ",
            "\\frac",
            "\\text{a}",
            "^",
            "_",
            "!",
            "&",
            "\\\\",
            "%",
            "\n",
            "\x00",
            "\ud800",
            "\U0001d7d8",
            "=",
            "<",
            "1 ",
        ]
    ),
)
programs = st.sampled_from(
    [
        f"__import__('pathlib').Path('{SENTINEL}').touch()",
        f"__import__('os').system('touch {SENTINEL}')",
        f"().__class__.__base__.__subclasses__()[0].__init__.__globals__['open']('{SENTINEL}', 'w')",
        f"exec(\"open('{SENTINEL}', 'w')\")",
        f"eval(compile(\"open('{SENTINEL}', 'w')\", '', 'exec'))",
        f"open('{SENTINEL}', 'w').write('x')",
        f"lambda: open('{SENTINEL}', 'w')",
        f"$(touch {SENTINEL})",
        f"`touch {SENTINEL}`",
        f"; touch {SENTINEL} #",
        f"\\input{{|touch {SENTINEL}}}",
        f"\\immediate\\write18{{touch {SENTINEL}}}",
        f"{{{{config.__class__.__init__.__globals__['os'].popen('touch {SENTINEL}')}}}}",
        "{0.__class__.__mro__}",
        "%s%s%s%n%n%n",
        "{" * 50 + "}" * 50,
        "%(x)99999999s",
        "{:>99999999999}",
        "import torch; while True: pass",
        "sympify('x')",
        "S(46)",
        "<script>alert(1)</script>",
        "'; DROP TABLE x",
        "\\def\\a{\\a\\a}\\a",
        "\\loop\\iftrue\\repeat",
        *["None", "True", "NaN", "inf", "-inf", "1e400"],
    ]
)
noise = st.one_of(
    st.text(max_size=300), st.binary(max_size=300).map(lambda data: data.decode("utf-8", "surrogateescape"))
)
glued = st.lists(
    st.one_of(
        term,
        st.sampled_from(list("+-*/^_(){}[]|!=<>,;:.&%$#~'\" \n\\")),
        st.sampled_from([*COMMANDS.split(), " or ", " and "]),
    ),
    max_size=60,
).map("".join)
hostile = st.one_of(towers, brackets, long_text, programs, noise, glued)


def framed(answer: str, frame: int) -> str:
    frames = ["{}", "\\boxed{{{}}}", "${}$", "Answer: {}", "\\[{}\\]", "<think>{}</think>", "$$ {} $$\n\n", "x = {}"]
    return frames[frame].format(answer) if frame else answer


@dataclass
class Watch:
    """What the workers took, seen from outside: seconds of every answer, the most memory of every process."""

    seconds: list[float] = field(default_factory=list)
    grown_mb: dict[int, float] = field(default_factory=dict)
    """Process → address space at its highest, beyond what was mapped when it was ready."""
    resident_mb: dict[int, float] = field(default_factory=dict)
    ready_mb: dict[int, float] = field(default_factory=dict)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        receive, wait_until_ready = WorkerProcess.receive, WorkerProcess.wait_until_ready

        def watched_start(process: WorkerProcess) -> None:
            wait_until_ready(process)
            self.ready_mb[process.pid] = memory_mb(process.pid)["VmSize"]

        def watched(process: WorkerProcess, seconds: float) -> dict[str, Any]:
            start = time.monotonic()
            try:
                return receive(process, seconds)
            finally:
                if process.pid in self.ready_mb:
                    self.seconds.append(time.monotonic() - start)
                    if memory := memory_mb(process.pid):  # none of one that died
                        self.grown_mb[process.pid] = memory["VmPeak"] - self.ready_mb[process.pid]
                        self.resident_mb[process.pid] = memory["VmHWM"]

        patch.setattr(WorkerProcess, "wait_until_ready", watched_start)
        patch.setattr(WorkerProcess, "receive", watched)


def memory_mb(pid: int) -> dict[str, float]:
    status = Path(f"/proc/{pid}/status").read_text()
    return {name: int(kilobytes) / 1024 for name, kilobytes in re.findall(r"(Vm\w+):\s+(\d+) kB", status)}


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        watch.install(patch)
        yield watch


@pytest.fixture(scope="module")
def pool(watch: Watch) -> Iterator[GraderPool]:
    SENTINEL.unlink(missing_ok=True)
    config = RewardConfig(kind="math", extract=list(EXTRACT), workers=2, deadline_s=DEADLINE, memory_mb=MEMORY_MB)
    with GraderPool(config) as pool:
        yield pool
    assert not SENTINEL.exists()


def check(pool: GraderPool, gold: str, texts: list[str]) -> Counter[Outcome]:
    problem = Problem("hostile", "", gold)
    futures = []
    for text in texts:
        start = time.monotonic()
        futures.append(pool.submit(problem, text))
        assert time.monotonic() - start < 1.0, f"finding the answer took too long: {text[:200]!r}"
    grades = [future.result(timeout=len(texts) * (DEADLINE + 1.0) + 60.0) for future in futures]
    for text, grade in zip(texts, grades, strict=True):
        assert grade.outcome is not Outcome.CORRECT, (gold, text[:200])
        assert grade.reward == 0.0
    return Counter(grade.outcome for grade in grades)


def try_hostile_answers(pool: GraderPool, watch: Watch, examples: int) -> None:
    outcomes: Counter[Outcome] = Counter()

    @settings(
        max_examples=examples // BATCH,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.sampled_from(GOLDS),
        st.lists(st.tuples(hostile, st.integers(0, 7)), min_size=BATCH, max_size=BATCH),
    )
    def none_is_right(gold: str, answers: list[tuple[str, int]]) -> None:
        outcomes.update(check(pool, gold, [framed(*answer) for answer in answers]))

    begun = len(watch.seconds)
    none_is_right()
    grown, resident = max(watch.grown_mb.values()), max(watch.resident_mb.values())
    print(f"{dict(outcomes)}, {len(watch.ready_mb)} workers, slowest {max(watch.seconds[begun:]):.2f} s")
    print(f"most memory of a worker: {grown:.0f} MiB beyond its start, {resident:.0f} MiB resident")
    assert outcomes.total() >= examples
    assert max(watch.seconds[begun:]) < DEADLINE + 1.0
    assert grown <= MEMORY_MB + 1.0


def test_hostile_answers(pool: GraderPool, watch: Watch) -> None:
    try_hostile_answers(pool, watch, 300)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_hostile_answers(pool: GraderPool, watch: Watch) -> None:
    try_hostile_answers(pool, watch, 10_000)
