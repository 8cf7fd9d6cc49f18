"""Scores of reasoning-gym's own tasks, with two of their traps closed.

Trap one: partial credit. Most scorers give a little for nonsense of the right form, and some the full score for
anything (``game_of_life_halting`` compares truth values of strings). Only the full score counts here, and if
nonsense earns it too, the answer must be the task's own.

Trap two: several scorers hand the answer to ``eval`` or to SymPy's ``parse_expr``, which evaluates it as Python.
Here ``eval`` reads literals only, and what reaches ``parse_expr`` must first look like plain arithmetic.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from p2o.types import Outcome

EVALUATED = frozenset({"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"})
"""Tasks whose scorer calls ``eval`` on the answer."""
PARSED = frozenset(
    {"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"}
)
"""Tasks whose scorer calls ``parse_expr`` on the answer."""

_NONSENSE = "no answer at all"
_ARITHMETIC = re.compile(
    r"(?:[0-9]{1,12}(?:\.[0-9]{1,12})?|\b(?:sin|cos|tan|exp|log|ln|sqrt|asin|acos|atan|sinh|cosh|tanh|pi|[a-zA-Z])\b"
    r"|\*\*?|[-+/^() ])+"
)
_MAX_ARITHMETIC = 500
_LARGE_POWER = re.compile(r"(?:\*\*|\^)\s*\(?\s*-?(?:[0-9]{3,}|[^-0-9a-zA-Z(\s])|(?:\*\*|\^)[^-+*/]*(?:\*\*|\^)")


def pack(value: Any) -> Any:
    """An entry as JSON that keeps tuples and keys that are not strings; the inverse of :func:`unpack`.

    Raises:
        TypeError: for values that JSON does not have.
    """
    if isinstance(value, tuple):
        return {"(tuple)": [pack(item) for item in value]}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: pack(item) for key, item in value.items()}
        return {"(dict)": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, list):
        return [pack(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} is not JSON")


def unpack(value: Any) -> Any:
    """The entry that :func:`pack` was given."""
    if isinstance(value, list):
        return [unpack(item) for item in value]
    if isinstance(value, Mapping):
        if value.keys() == {"(tuple)"}:
            return tuple(unpack(item) for item in value["(tuple)"])
        if value.keys() == {"(dict)"}:
            return {unpack(key): unpack(item) for key, item in value["(dict)"]}
        return {key: unpack(item) for key, item in value.items()}
    return value


def judge(answer: str, task: str, params: Mapping[str, Any], entry: Mapping[str, Any]) -> Outcome:
    """``CORRECT`` if the task's scorer gives the full score, ``UNPARSEABLE`` if it cannot read the answer.

    Args:
        answer: the extracted answer.
        task: name of the reasoning-gym dataset.
        params: arguments of its configuration that the question was made with.
        entry: the packed entry: question, answer and metadata.
    """
    if task in PARSED and not is_arithmetic(answer):
        return Outcome.UNPARSEABLE
    dataset, entry = _dataset(task, json.dumps(params, sort_keys=True)), unpack(entry)
    score = _score(dataset, answer, entry)
    if score is None:
        return Outcome.UNPARSEABLE
    if score < 1.0:
        return Outcome.WRONG
    takes_anything = _score(dataset, _NONSENSE, entry) == 1.0
    same = answer.strip().casefold() == str(entry["answer"]).strip().casefold()
    return Outcome.WRONG if takes_anything and not same else Outcome.CORRECT


def _score(dataset: Any, answer: str, entry: Mapping[str, Any]) -> float | None:
    try:
        return float(dataset.score_answer(answer, entry))
    except MemoryError:
        raise
    except Exception:  # scorers do not expect what a model may write
        return None


def is_arithmetic(text: str) -> bool:
    """Whether ``text`` is numbers, single letters, common functions and operators, with no large powers."""
    return (
        len(text) <= _MAX_ARITHMETIC
        and _ARITHMETIC.fullmatch(text.strip()) is not None
        and _LARGE_POWER.search(text) is None
    )


@cache
def _dataset(task: str, params: str) -> Any:
    import reasoning_gym

    dataset = reasoning_gym.create_dataset(task, **json.loads(params), seed=0, size=1)
    if task in EVALUATED:
        vars(sys.modules[type(dataset).__module__])["eval"] = ast.literal_eval
    return dataset
