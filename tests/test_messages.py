"""What one rank tells another arrives as it was, and nothing else can be said."""

from __future__ import annotations

import json
import math
import signal
from collections import Counter
from pathlib import Path

import pytest

from p2o.config.schema import GepaConfig
from p2o.errors import InputError, RunError
from p2o.evolution.gepa_phase import Evolution
from p2o.messages import decode, encode
from p2o.stop import Stopped
from p2o.types import Grade, Outcome, Phase, Problem, Rollout, Template


@pytest.mark.parametrize(
    "value",
    [
        None,
        [1, 2.5, "três", True, None, [(), ((1,),)]],
        {"a": (1, "b"), 3: frozenset({"x"}), ("q", 0): {1, 2}},
        0.1 + 0.2,
        -math.inf,
        Phase.EVOLUTION,
        signal.SIGTERM,
        Path("runs/one"),
        Rollout("q", "t", 1, (1, 2), (3,), (-0.25,), "text", "stop", Grade(Outcome.CORRECT, 1.0), 4),
        Problem("q", "Q?", "4", {"level": 5, "tags": ["a"]}),
        Template("text", parents=("x",), epoch=2, dev_score=0.5, covers=frozenset({"q"})),
        GepaConfig(variant="off"),
        Evolution((Template(""),), (), ("d",), ("t",), 1, 2, 3, {"leak": 1}, 4, "budget"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_arrives_as_it_was(value: object) -> None:
    there = decode(encode(value))
    assert there == value
    assert type(there) is type(value)


def test_a_nan_and_a_counter() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode(Counter("aab"))) == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    "error",
    [
        InputError("data.path=x is not a file"),
        Stopped(signal.SIGINT),
        FileNotFoundError(2, "nothing", "f"),
        KeyError(3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_with_its_kind_its_words_and_its_notes(error: BaseException) -> None:
    error.add_note("where it was")
    there = decode(encode(error))
    assert type(there) is type(error)
    assert (there.args, there.__notes__) == (error.args, ["where it was"])


def test_an_error_of_another_package_keeps_its_words() -> None:
    there = decode(encode(json.JSONDecodeError("no", "doc", 1)))
    assert isinstance(there, RunError)
    assert "JSONDecodeError: no" in str(there)


def test_what_is_none_of_these_is_not_sent() -> None:
    with pytest.raises(TypeError, match="object cannot be sent"):
        encode({"a": [object()]})


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "p2o.launch:launch", "builtins:eval"])
def test_a_message_names_nothing_but_classes_of_p2o(name: str) -> None:
    for message in ({"object": name, "fields": {}}, {"enum": name, "value": "true"}):
        with pytest.raises(TypeError, match="is not a class of p2o"):
            decode(json.dumps(message).encode())
    assert isinstance(decode(json.dumps({"error": name, "args": ["true"], "notes": []}).encode()), RunError)
