r"""Is this answer the gold answer? Normalisation and cheap refusals here, the mathematics in math-verify.

The policy, where mathematics alone does not decide:

=============================================  ==================================================================
answer against gold                            verdict
=============================================  ==================================================================
unit, currency or degree sign on either side   ignored
``10%`` against ``10`` or ``0.1``              equal
thousands separators (``1,000``, ``1 000``)    ignored; a comma is never a decimal point
decimal against an exact value                 equal when both round to the same six decimals and to four digits
``x = 5``, ``f(x) = 5``, ``x \in [1, 2]``      the right-hand side counts if the gold has none
lists, with "," ";" "and" "or"                 equal as sets, in any order; tuples, points and intervals in theirs
several boxes next to each other               one list
several values against one gold                wrong, also as an interval, a set, ``\pm`` or "1 or 2"
numbers side by side (``46 47``), ``1 … 9``    not an answer (math-verify reads the sum)
arithmetic that remains (``7!/16``)            equal to its value
``\sum``, ``\int``, ``\gcd`` … that remain     wrong unless the gold has them: that restates the question
=============================================  ==================================================================
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from math import inf, lgamma, log, log10
from typing import Any

from p2o.rewards.extract import boxed
from p2o.types import Outcome

MAX_LENGTH = 1_000
"""Characters of the longest answer that is parsed. The longest of 22,000 golds in common data sets has 210."""
MAX_DEPTH = 12
"""Open brackets at once, with nested fractions and exponents. The deepest of those golds has 4."""
MAX_DIGITS = 20_000
"""Digits of the largest number that an answer may stand for when written out."""

_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u03c0": r"\pi ",
        "\u221a": r"\sqrt", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\neq ",
        "\u00b0": r"^{\circ}", "\u00b2": "^2", "\u00b3": "^3", "\u222a": r"\cup ", "\u2208": r"\in ", "$": "",
        "\u20ac": "", "\u00a3": "",
        **{chr(code): "" for code in range(32) if chr(code) not in "\t\n"},
    }
)  # fmt: skip
_DELIMITERS = re.compile(r"(?<!\\)\\(?:[$()]|\[|\])")
_SPACES = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~")
_COMMA = re.compile(r"\s?\{\s?,\s?\}\s?")
_SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*([0-9])\s*([0-9])(?![0-9])")
_UNIT_NAMES = (
    "mm|cm|dm|km|ft|yd|mi|in|inch|mg|kg|lb|lbs|oz|ml|sec|min|hr|hrs|day|days|yr|yrs|mph|rpm|Hz|Pa|am|pm|deg|units?|feet|foot|"
    "inches|miles?|met(?:er|re)s?|yards?|grams?|pounds?|hours?|minutes?|seconds?|weeks?|months?|years?|dollars?|cents?|"
    "degrees?|ways|people"
)
_UNIT = re.compile(
    r"(?<=[0-9})])\s*(?:\\(?:text(?:bf|rm|it|normal)?|mbox|mathrm)\s?\{\s?(?!\s?[eiI]\s?\})[^{}0-9]{1,40}\}"
    rf"|(?:\s(?:square|cubic|sq|cu)\.?)?(?:\s?(?:{_UNIT_NAMES})"
    r"|\s(?!alpha|beta|gamma|delta|theta|lambda|sigma|omega|sqrt|infinity)[A-Za-z]{4,20})(?:\s?(?:/|per)\s?[a-z]{1,12})?)"
    r"\s?(?:\^\s?\{?[0-9]\}?)?\Z"
)
_SCIENTIFIC = re.compile(r"([-+]?[0-9]{1,40}(?:\.[0-9]{1,40})?)[eE]([-+]?[0-9]{1,4})")
_MIXED = re.compile(r"\A([-+]?)([0-9]{1,40})\s+([0-9]{1,40})/([0-9]{1,40})\Z")
_WORDS = re.compile(r"(?:\\[a-z]{4,10}\s?\{)?\s*([A-Za-z][A-Za-z' -]{3,})\}?")
_PERCENT = re.compile(r"\s*(?:\\?%|\b(?:percent(?:age)?|pct)\b)|\\text\{\s*(?:percent(?:age)?|pct)\s*\}")
_VALUE_IN_TEXT = re.compile(r"\\(?:text|mbox|mathrm)\s?\{([^{}]{0,80}(?:[0-9]|\bor\b|\band\b)[^{}]{0,80})\}")
_COMMAND = re.compile(r"\\[,;:!]|\\(?:text[a-z]*|mbox|mathrm)\s?\{[^{}]*\}|\\[a-zA-Z]+")
_THOUSANDS = re.compile(r"(?<=[0-9])(?<!\b0),(?=[0-9]{3}(?![0-9]))")
_VARIABLE = re.compile(r"(?<![a-zA-Z])[a-zA-Z](?<![eEiI])(?![a-zA-Z])")
_CHOICE = re.compile(r"(?:\\[a-z]{4,10}\{)?\(?([A-Z])\)?\}?")
_GROUPS_IN_BRACES = re.compile(r"(?<=\{)[0-9]{1,3}(?:,[0-9]{3})+(?=\})")
_LONE_POINT = re.compile(r"(?<=[0-9])\.(?![0-9.])")
_GROUPED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?")
_IMAGINARY = re.compile(r"(?<=[0-9])i(?![a-zA-Z])")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_DEGREES = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s?\^\s?\{?\\circ\}?")
_IDLE_SPACE = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s?(?:(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]*)(?P<decimal>\.[0-9]*)?"
    r"|\\[dt]?frac\s?\{(?P<top>[0-9]+)\}\s?\{(?P<bottom>[0-9]+)\}|(?P<over>[0-9]+)/(?P<under>[0-9]+))"
)
_SIDE_BY_SIDE = re.compile(r"(?<![\^_0-9.])[0-9]+\s+[0-9]+(?![0-9/.^])|\\l?dots|\.\.|\u2026")
_OPERATOR = re.compile(r"\\?(?:sum|prod|i*int|lim|gcd|lcm|b?mod|det|max|min|lfloor|lceil|arg)(?![a-zA-Z])|\\frac\{d\}")
_LARGE_BINOMIAL = re.compile(r"binom(?=.{0,400}[0-9]{5})", re.DOTALL)


def judge(answer: str, gold: str) -> Outcome:
    """``CORRECT`` if ``answer`` is mathematically ``gold``; ``UNPARSEABLE`` if it is not a usable expression.

    Runs math-verify in this process without a deadline: for text that a model wrote use
    :class:`~p2o.rewards.pool.GraderPool`. Raises nothing but :class:`MemoryError`.
    """
    try:
        answer, gold = normalise(answer), normalise(gold)
        outcome = _judge(answer.replace(r"\%", ""), gold.replace(r"\%", ""))
        if outcome is Outcome.WRONG and answer.endswith(r"\%") is not gold.endswith(r"\%"):
            outcome = _judge(_hundredth(answer), _hundredth(gold))
        return outcome
    except MemoryError:
        raise
    except Exception:  # SymPy meets text that nobody foresaw; what it cannot evaluate is not an answer
        return Outcome.UNPARSEABLE


def _hundredth(text: str) -> str:
    """A percentage as a fraction; everything else as it is."""
    value = number(text.removesuffix(r"\%")) if text.endswith(r"\%") else None
    return text if value is None else f"{value.numerator}/{100 * value.denominator}"


def _judge(answer: str, gold: str) -> Outcome:
    if not answer:
        return Outcome.UNPARSEABLE
    if _squeeze(answer) == _squeeze(gold):
        return Outcome.CORRECT
    value, gold_value = number(answer), number(gold)
    if value is not None and gold_value is not None:
        exact = "." not in answer and "." not in gold
        return _outcome(value == gold_value if exact else _close(value, gold_value))
    if (value is None) is not (gold_value is None) and _has_no_value(answer if value is None else gold):
        return Outcome.WRONG
    words, gold_words = _WORDS.fullmatch(answer), _WORDS.fullmatch(gold)
    if words and gold_words:  # math-verify would multiply the letters: east = seat
        return _outcome(_squeeze(words[1]).lower() == _squeeze(gold_words[1]).lower())
    if is_hostile(answer) or (_SIDE_BY_SIDE.search(answer) and not _SIDE_BY_SIDE.search(gold)):
        return Outcome.UNPARSEABLE
    expression, gold_expression = parse(answer), parse(gold)
    if expression is None or digits(expression) > MAX_DIGITS:
        return Outcome.UNPARSEABLE
    if gold_expression is None or not set(_OPERATOR.findall(answer)) <= set(_OPERATOR.findall(gold)):
        return Outcome.WRONG
    if digits(gold_expression) > MAX_DIGITS:
        return _outcome(expression == gold_expression)
    return _outcome(_equal(expression, gold_expression))


def parses(gold: str) -> bool:
    """Whether an answer can be compared with this gold by more than its spelling."""
    gold = normalise(gold).replace(r"\%", "")
    if number(gold) is not None:
        return True
    expression = None if is_hostile(gold) else parse(gold)
    return expression is not None and str(expression) not in ("nan", "zoo")


def normalise(text: str) -> str:
    """One spelling for what LaTeX, Unicode and habit spell in several ways. Idempotent on its own results."""
    if "boxed{" in text:
        text = boxed(text) or text
    text = _SPACES.sub(" ", re.sub(r"\\!\s*", "", _DELIMITERS.sub("", text))).translate(_UNICODE)
    text = _COMMA.sub(",", text).replace("**", "^").replace(r"\approx", "=").strip().lstrip("=: ").rstrip(".,;: ")
    text = _GROUPS_IN_BRACES.sub(lambda groups: groups[0].replace(",", ""), _LONE_POINT.sub("", text))
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = _VALUE_IN_TEXT.sub(r"\1", _PERCENT.sub(r"\\%", text))
    if choice := _CHOICE.fullmatch(text):
        return choice[1]
    if _GROUPED.fullmatch(text):
        return text.replace(" ", "")
    if _TRIGONOMETRIC.search(text):
        text = _DEGREES.sub(r"\\frac{\1\\pi}{180}", text)
    if scientific := _SCIENTIFIC.fullmatch(text):
        return rf"{scientific[1]} \times 10^{{{scientific[2]}}}"
    text = _MIXED.sub(r"\1\2\\frac{\3}{\4}", _UNIT.sub("", text))
    return _IMAGINARY.sub(" i", text)


def number(text: str) -> Fraction | None:
    r"""The value of a plain integer, decimal, ``a/b`` or ``\frac{a}{b}``; None for everything else."""
    match = _NUMBER.fullmatch(text) if len(text) <= 400 else None
    if match is None or not any(character.isdigit() for character in text):
        return None
    top, bottom = match["top"] or match["over"], match["bottom"] or match["under"]
    if top is not None:
        if int(bottom) == 0:
            return None
        value = Fraction(int(top), int(bottom))
    else:
        value = Fraction((match["whole"].replace(",", "") or "0") + (match["decimal"] or "").rstrip("."))
    return -value if match["sign"] == "-" else value


def _has_no_value(text: str) -> bool:
    """Whether an expression is plainly not a single number: a list, a pair, an interval, or something in a variable."""
    text = _COMMAND.sub(" ", _THOUSANDS.sub("", text))
    return "," in text or ";" in text or ("=" not in text and _VARIABLE.search(text) is not None)


def is_hostile(text: str) -> bool:
    """Too long, too deep or with binomials too large to be worth a parser's time. One pass, no recursion."""
    if len(text) > MAX_LENGTH or _LARGE_BINOMIAL.search(text):
        return True
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH or text.count("!") > 8 or text.count("|") > 12 or text.count("^") > 60


@lru_cache(maxsize=4096)
def parse(text: str) -> Any | None:
    """The SymPy expression of a normalised answer, unevaluated; None if it is not one."""
    from latex2sympy2_extended import latex2sympy, normalize_latex
    from math_verify.grader import should_treat_as_complex
    from math_verify.parser import get_last_eq
    from sympy import I

    latex = normalize_latex(text, _normalisation())
    for candidate in dict.fromkeys((latex, get_last_eq(latex))):
        try:
            expression = latex2sympy(
                candidate,
                is_real=not should_treat_as_complex(candidate),
                convert_degrees=False,
                normalization_config=None,
            )
            return expression.xreplace({s: I for s in expression.free_symbols if s.name == "i"})
        except Exception:  # the parser reports what it cannot read by many types of error
            continue
    return None


def digits(expression: Any) -> float:
    """Upper bound on the decimal digits that evaluating ``expression`` may write out; infinite if out of reach.

    A power of a sum counts as infinite if it has more than a million terms when multiplied out.
    """
    from sympy import Add, Basic, Integer, Pow, Rational, factorial

    if isinstance(expression, Rational):
        return log10(abs(expression.p) + 1) + log10(expression.q)
    if isinstance(expression, Pow):
        base, exponent = (digits(argument) for argument in expression.args)
        if expression.exp.free_symbols:
            return base + exponent
        if isinstance(expression.base, Add) and expression.base.free_symbols and exponent < 20:
            terms, power = len(expression.base.args), float(abs(expression.exp.evalf(5)))
            if lgamma(terms + power) - lgamma(power + 1) - lgamma(terms) > log(1e6):
                return inf
        rational = isinstance(expression.exp, Rational)
        times = float(abs(expression.exp.p)) if rational and exponent < 20 else _power_of_ten(exponent)
        return exponent + base * max(1.0, times)
    if isinstance(expression, factorial):
        argument = digits(expression.args[0])
        exact = isinstance(expression.args[0], Integer) and argument < 20
        value = float(expression.args[0]) if exact else _power_of_ten(argument)
        return value * argument
    parts = expression.args if isinstance(expression, Basic) else list(expression)
    return sum(digits(part) for part in parts) if parts else 1.0


def _power_of_ten(exponent: float) -> float:
    return 10.0**exponent if exponent < 20 else inf


def _equal(expression: Any, gold: Any) -> bool:
    from math_verify import verify
    from sympy import Float

    sides = (expression, gold)
    if not all(getattr(side, "is_number", False) for side in sides):
        return verify(gold, expression, timeout_seconds=None)
    # math-verify compares numbers at six decimals, so that all below 1e-7 would be equal
    first, second = (side.evalf(30) for side in sides)
    if any(side.has(Float) for side in sides):
        return _close(first, second)
    same_magnitude = abs(first - second) <= max(abs(first), abs(second)) / 10**9
    return bool(same_magnitude) and verify(gold, expression, timeout_seconds=None)


def _close(first: Any, second: Any) -> bool:
    """Whether two numbers round to the same six decimals and agree to four digits."""
    return bool(round(first, 6) == round(second, 6) and abs(first - second) <= max(abs(first), abs(second)) / 10_000)


def _squeeze(text: str) -> str:
    return _IDLE_SPACE.sub("", text)


def _outcome(equal: bool) -> Outcome:
    return Outcome.CORRECT if equal else Outcome.WRONG


@lru_cache(maxsize=1)
def _normalisation() -> Any:
    from latex2sympy2_extended import NormalizationConfig

    return NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="last")
