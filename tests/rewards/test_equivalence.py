from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import pytest

from p2o.rewards import grade_math
from p2o.rewards.equivalence import digits, is_hostile, judge, normalise, number, parse, parses
from p2o.types import Outcome


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("7,425,000", "7425000"),
        ("1 000", "1000"),
        (r"14{,}916", "14916"),
        ("5.0", "5"),
        ("1/2", "0.5"),
        ("-1./3", r"-\frac{1}{3}"),
        (r"\frac{1}{20,\!000}", "0.00005"),
        (r"\frac12", r"\dfrac{2}{4}"),
        ("2.625", r"2\frac58"),
        ("1.5", "1 1/2"),
        ("0.333333", r"\frac{1}{3}"),
        ("4.123105625617661", r"\sqrt{17}"),
        ("4.5e33", r"4.5 \times 10^{33}"),
        (r"1.6 \times 10^{-19}", "1.6e-19"),
        (r"\$10", "10"),
        (r"10 \text{ cm}^2", "10"),
        ("10 weeks", "10"),
        ("5 square units", "5"),
        (r"90^\circ", "90"),
        (r"10\%", "10"),
        ("0.1", r"10\%"),
        ("28 percent", r"28\%"),
        ("x = 5", "5"),
        ("5", "f(x) = 5"),
        (r"x \in [1, 2]", "[1, 2]"),
        ("1, 3, 2", "1, 2, 3"),
        ("1 and 2", r"\{2, 1\}"),
        ("x = 1 or x = 2", "1, 2"),
        (r"\pm 1", "-1, 1"),
        ("(3, 2)", "(p, q) = (3, 2)"),
        (r"\frac{7!}{16}", "315"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        ("x^2 + 2*x + 1", "(x+1)^2"),
        ("x**2", "x^2"),
        ("i(2-i)", "1+2i"),
        (r"\sin(90^{\circ}-x)", r"\cos(x)"),
        ("5 \u2265 x", r"x \le 5"),
        (r"(-\infty, 3) \cup (3, \infty)", r"(-\infty,3)\cup(3,\infty)"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"),
        (r"\text{(C)}", "C"),
        ("tuesday", r"\text{Tuesday}"),
        (r"\boxed{46}", "$46$"),
        ("4" * 500, "4" * 500),
    ],
)
def test_equal(answer: str, gold: str) -> None:
    assert judge(answer, gold) is Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("5", "4"),
        ("10 cm", "100"),
        ("5.001", "5"),
        ("0.33", r"\frac{1}{3}"),
        ("3.14", r"\pi"),
        # numbers that math-verify rounds to the same six decimals
        ("0.0000001", "0.0000004"),
        ("0", "1.6e-19"),
        (r"10^{-20}", r"2\cdot 10^{-20}"),
        # letters that math-verify takes for units
        ("4", "4t"),
        ("4t", "4"),
        ("2", "2ab"),
        ("x + 3d", "x + 3"),
        # words that math-verify multiplies letter by letter
        ("east", "seat"),
        ("12,34", "1234"),
        ("(1, 3, 2)", "[1, 2, 3]"),
        ("[0, 9)", "(0, 9)"),
        ("x > -1", "x < 1"),
        ("1 + i", "1 - i"),
    ],
)
def test_not_equal(answer: str, gold: str) -> None:
    assert judge(answer, gold) is not Outcome.CORRECT
    assert judge(gold, answer) is not Outcome.CORRECT


@pytest.mark.parametrize(
    "answer",
    [
        "46, 47",
        "46 or 47",
        "46 and 47",
        "46; 47",
        r"46 \text{ or } 47",
        r"46 \text{ or } \text{47}",
        r"46 \quad \text{(or 47)}",
        "46 (or 47)",
        r"46\text{ or so}",
        r"\{46, 47\}",
        "(46, 47)",
        "[46, 47]",
        "[0, 100]",
        r"(-\infty, \infty)",
        r"x \in \{46, 47\}",
        r"x \in [0, 100]",
        r"0 \le x \le 100",
        r"x \ge 46",
        r"\pm 46",
        "x = 46, x = 47",
        r"x = 46 \text{ or } x = 47",
        "46|47",
        r"46 \lor 47",
        r"46 \cup 47",
        "46..47",
        r"46 \ldots 47",
        r"1, 2, \ldots, 100",
        "1, 2, ..., 100",
        r"\mathbb{R}",
        r"\mathbb{N}",
        "46 47",
        "4 6",
        "46 0",
        "45 1",
        "46x",
        r"46 \pmod{100}",
        r"\begin{pmatrix}46\end{pmatrix}",
        r"\begin{cases}46\\47\end{cases}",
        r"46 \\ 47",
        "46 & 47",
        "46~47",
        "46/47",
        "f(46)",
        r"\frac{46}{0}",
        r"\frac{0}{0}",
        "46!",
        "?",
        "any",
        "the answer",
        r"\text{answer}",
        r"\boxed{46} or \boxed{47}",
        r"\boxed{45}, \boxed{46}",
        r"\boxed{46}, \boxed{47}",
        r"\boxed{46} \boxed{47}",
    ],
)
def test_several_answers_or_none_to_a_question_with_one(answer: str) -> None:
    text = answer if "boxed" in answer else rf"\boxed{{{answer}}}"
    assert grade_math(text, "46").outcome is not Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        (r"\sum_{k=1}^{4} k", "10"),
        (r"\int_0^{2} x dx", "2"),
        (r"\lim_{x \to 0} 46", "46"),
        (r"\gcd(12, 18)", "6"),
        (r"\operatorname{lcm}(4, 6)", "12"),
        (r"\max(3, 4)", "4"),
        (r"\lfloor 46.5 \rfloor", "46"),
        (r"\det\begin{pmatrix}46\end{pmatrix}", "46"),
    ],
)
def test_a_question_restated_is_no_answer(answer: str, gold: str) -> None:
    assert judge(answer, gold) is Outcome.WRONG


def test_an_operator_that_the_gold_has_is_allowed() -> None:
    assert judge(r"\sum_{k=1}^{n} k", r"\sum_{j=1}^{n} j") is not Outcome.UNPARSEABLE
    assert judge(r"F = \sum_{k=0}^{n-1} G_{n-k-1} G_k", r"F = \sum_{k=0}^{n-1} G_k G_{n-k-1}") is Outcome.CORRECT


@pytest.mark.parametrize(
    "answer",
    [
        "9^{9^{9}}",
        "((9!)!)!",
        "99999999!",
        r"\binom{1000000000}{500000000}",
        "(" * 500 + "1" + ")" * 500,
        "1+" * 5000 + "1",
        r"\frac{1}{" * 60 + "2" + "}" * 60,
        "2^" * 200 + "2",
        "!" * 50,
        "",
        "\x00",
        "\ud800",
        "\\",
    ],
)
def test_what_is_not_worth_an_evaluation_is_unparseable(answer: str) -> None:
    assert judge(answer, "46") is Outcome.UNPARSEABLE


def test_a_huge_gold_is_still_matched_by_its_own_form() -> None:
    assert judge("2^{2^{2009}} + 1", "1 + 2^{2^{2009}}") is Outcome.UNPARSEABLE
    assert judge("2^{2^{2009}}+1", "2^{2^{2009}} + 1") is Outcome.CORRECT
    assert judge("3", "2^{2^{2009}} + 1") is Outcome.WRONG


def test_digits_bound_what_an_expression_writes_out() -> None:
    assert digits(parse("2^{100}")) >= 30
    assert digits(parse("10!")) >= 6
    assert digits(parse("x^{10}")) < 20
    assert digits(parse("9^{9^{9^{9}}}")) > 1e9
    assert digits(parse("(x+1)^{100}")) < 1000
    assert digits(parse("(a+b+c+d+f+g+h+j)^{50}")) == float("inf")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1,234.5", Fraction(-2469, 2)),
        (r"-\frac{3}{6}", Fraction(-1, 2)),
        ("4/6", Fraction(2, 3)),
        (".5", Fraction(1, 2)),
        ("1/0", None),
        ("0,111", None),
        ("12,34", None),
        ("1.2.3", None),
        ("x", None),
        ("", None),
        ("-", None),
    ],
)
def test_number(text: str, value: Fraction | None) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    "text", [r"$\frac12$", "1 000", r"90^{\circ}", "10 weeks", r"\text{(C)}", "2i", r"28 \%", "1 1/2"]
)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_golds_that_no_answer_can_be_compared_with() -> None:
    assert all(
        parses(gold)
        for gold in ["5", r"\frac{x}{2}", r"\text{east}", "C", "[1, 2)", "1, 2", "x = 5", "2^{2^{2009}}", r"50\%"]
    )
    assert not any(parses(gold) for gold in ["", "  ", "$$", r"\frac{0}{0}", r"\frac{1}{", "((", "<img src=x>"])


def test_is_hostile_by_length_depth_and_count() -> None:
    assert not is_hostile(r"\frac{1}{1+\frac{1}{2}}")
    assert is_hostile("x" * 1001)
    assert is_hostile("[" * 13)


def test_importing_the_rewards_brings_no_torch_and_no_sympy() -> None:
    program = "import sys, p2o.rewards; sys.exit(any(name in sys.modules for name in ('torch', 'sympy', 'omegaconf')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
