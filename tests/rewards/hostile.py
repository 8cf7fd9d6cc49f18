"""Text that a model rewarded for fooling the grader could write, and what the graders' workers take for it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from p2o.rewards.process import WorkerProcess

SENTINEL = Path("/tmp") / "p2o-an-answer-was-executed"
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
