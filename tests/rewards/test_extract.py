from __future__ import annotations

import time

import pytest

from p2o.rewards.extract import METHODS, answer_line, bare, boxed, extract_answer, last_formula, last_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}.", "7"),
        (r"first \boxed{1}, but then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\fbox{3}", "3"),
        (r"\boxed {3}", "3"),
        (r"\boxed{50}$. The answer is $\boxed{50}$", "50"),
        (r"\boxed{1} or \boxed{2}", "1, 2"),
        (r"$\boxed{1}$, maybe $\boxed{2}$", "1, 2"),
        (r"\boxed{(3, 3)} \text{ for part (a) and } \boxed{(1, 1)}", "(3, 3), (1, 1)"),
        (r"\boxed{1} is wrong, so it is \boxed{2}", "2"),
        ("\\boxed{1}\n\n\\boxed{2}", "2"),
        (r"$x = \boxed{1}$ and $y = \boxed{2}$", "2"),
        (r"\boxed{4} then \boxed{}", "4"),
        (r"\boxed{7", None),
        (r"\boxed{4} then \boxed{7", "4"),
        ("no box", None),
    ],
)
def test_boxed(text: str, expected: str | None) -> None:
    assert boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("work\nAnswer: 34", "34"),
        ("**Answer:** 34.", "34"),
        ("Final answer: -3.5", "-3.5"),
        ("The answer is 5. I hope it helps.", "5"),
        ("Answer: 1\nno\nAnswer: 2\n", "2"),
        ("Answer:\n\n5\n\nbecause of that", "5"),
        ("Answer:\n1 2\n3 4\n\nmore", "1 2\n3 4"),
        ("Answer \\[ 9 \\]", "\\[ 9 \\]"),
        ("Answer in the form of an integer", None),
        ("Answer:", None),
        ("nothing", None),
    ],
)
def test_answer_line(text: str, expected: str | None) -> None:
    assert answer_line(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 12.", "12"),
        ("2 + 2 = 4", "4"),
        ("between 3 and -5", "-5"),
        ("x-3", "3"),
        ("about 1,234,567.5 people", "1234567.5"),
        ("a half, .5", ".5"),
        ("so 2/3 of it", "2/3"),
        ("\u22127", "-7"),
        ("3.", "3"),
        ("none", None),
    ],
)
def test_last_number(text: str, expected: str | None) -> None:
    assert last_number(text) == expected


def test_a_bare_answer_is_a_whole_text_without_a_sentence() -> None:
    assert bare(r" \frac{1}{2} ") == r"\frac{1}{2}"
    assert bare("10 weeks") == "10 weeks"
    assert bare(r"\text{The midpoints form a regular hexagon}") is not None
    assert bare("The value must be 3") is None
    assert bare(r"Special matrix: $\begin{pmatrix}1\end{pmatrix}$") is None
    assert bare(r"\boxed{A") is None


def test_last_formula_gives_way_to_a_number_behind_it() -> None:
    assert last_formula("Therefore $x \\geq 5$ is the solution.") == "x \\geq 5"
    assert last_formula(r"It is \(a\), no, \[b\]") == "b"
    assert last_formula("The volume of $ABC$ is 120.") is None


def test_methods_are_tried_in_order() -> None:
    text = "The answer is 5. See \\boxed{6} and page 7"
    assert extract_answer(text, ["boxed", "answer_line", "last_number"]) == "6"
    assert extract_answer(text, ["answer_line", "boxed"]) == "5"
    assert extract_answer(text, ["last_number"]) == "7"
    assert extract_answer(text, ["whole"]) == text
    assert extract_answer("nothing", ["boxed", "last_number"]) is None


def test_a_sentence_after_the_marker_is_cut_down_for_mathematics_only() -> None:
    text = "Final Answer: The area of $ABC$ is 120."
    assert extract_answer(text, ["answer_line"], mathematical=True) == "120"
    assert extract_answer(text, ["answer_line"]) == "The area of $ABC$ is 120"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "unit",
    [
        *["\\boxed{", "\\boxed{1}", "\\boxed{{", "{", "}", "$", "$$", "$a", "\\(", "\\[", "\\(a", "\\\\", "\\"],
        *["answer", "answer: ", "answer is\n", "1", "1,", "1.1", "1,234,", "1/1", ".", "-", "/", "*", "a ", " "],
        *["\x00", "\ud800"],
    ],
)
def test_every_method_is_linear_on_a_megabyte(method: str, unit: str) -> None:
    """It takes milliseconds; what looks again from every place of the text would take hours."""
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    extract_answer(text, [method], mathematical=True)
    assert time.process_time() - start < 60.0
