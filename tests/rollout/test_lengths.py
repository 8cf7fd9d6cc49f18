"""A run that may ask its engine for more than it can hold is told so before the first round."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2o.config import Config
from p2o.launch import launch
from p2o.policy.builders import byte_tokenizer
from p2o.rollout.lengths import longest_sequences
from p2o.rollout.prompts import PromptRenderer

ROLLOUT = "rollout.max_prompt_tokens + rollout.max_new_tokens"
REFLECTOR = "reflector.max_prompt_tokens + reflector.max_new_tokens + the chat header"
LENGTHS = ("rollout.max_prompt_tokens=500", "rollout.max_new_tokens=12")


def test_questions_go_no_further_than_the_model_and_reflections_as_far_as_they_are_allowed(
    configure: Callable[..., Config],
) -> None:
    renderer = PromptRenderer(byte_tokenizer(), "{question}", 500)
    header = len("<user\n>\n<assistant\n")  # the marks around a message are a token each
    plain = configure("+experiment=teacher_ref", *LENGTHS)
    assert longest_sequences(plain, renderer, None) == {ROLLOUT: 512}
    own = configure("+experiment=self_ref", *LENGTHS, "reflector.max_prompt_tokens=900", "reflector.max_new_tokens=90")
    assert longest_sequences(own, renderer, 400) == {ROLLOUT: 400, REFLECTOR: 990 + header}


def test_the_key_is_named(configure: Callable[..., Config], capsys: pytest.CaptureFixture[str]) -> None:
    config = configure("+experiment=self_ref", "debug=tiny", "trainer.threads=1", "reflector.max_prompt_tokens=4000")
    with pytest.raises(SystemExit) as exit_:
        launch(config)
    assert exit_.value.code == 1
    assert "reflector.max_prompt_tokens + reflector.max_new_tokens" in capsys.readouterr().err
