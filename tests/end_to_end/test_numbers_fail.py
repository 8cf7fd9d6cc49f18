"""The whole job when its numbers fail: the run ends with its batch kept, goes on later, or works in smaller parts."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from p2o import job as fit
from p2o.algorithm.state import Stage
from p2o.callbacks.checkpoint import read_checkpoint
from p2o.config import Config
from p2o.launch import launch
from p2o.policy.model import Policy

LUCKY = (
    "+experiment=grpo",
    "debug=tiny",
    "reward=function",
    "reward.function=lucky.score",
    "reward.extract=[whole]",
    "trainer.threads=1",
    "trainer.epochs=1",
)


def hook_training(patch: pytest.MonkeyPatch, hook: Callable[..., Any]) -> None:
    """``hook`` runs after every pass of the model with gradient; sampling goes on undisturbed."""
    load = fit.load_policy

    def hooked(*args: Any, **kwargs: Any) -> Policy:
        policy = load(*args, **kwargs)

        def call(module: nn.Module, args: Any, kwargs: dict[str, Tensor], output: Any) -> Any:
            return hook(kwargs["input_ids"], output) if torch.is_grad_enabled() else None

        policy.causal_lm.model.register_forward_hook(call, with_kwargs=True)
        return policy

    patch.setattr(fit, "load_policy", hooked)


def test_steps_that_are_never_finite_end_the_run_and_it_goes_on_where_it_stopped(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(*LUCKY, "policy.max_skipped_steps=3")
    run_dir = Path(config.run_dir)
    last, batch = run_dir / "checkpoints" / "last.ckpt", run_dir / "failed_batch.jsonl"
    passes: list[int] = []

    def poison(input_ids: Tensor, output: Any) -> Any:
        passes.append(input_ids.numel())
        output.last_hidden_state = output.last_hidden_state * torch.nan
        return output

    for rounds in (3, 1):  # the second launch begins with the count of the first
        passes.clear()
        batch.unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            hook_training(patch, poison)
            with pytest.raises(SystemExit) as left:
                launch(config)
        assert left.value.code == 1
        message = capsys.readouterr().err
        assert "NonFiniteError: the loss or gradient was not finite in 3 optimizer steps in a row" in message
        assert str(batch) in message
        assert len(passes) == rounds, "one micro-batch a round, and none after the last"
        checkpoint = read_checkpoint(last)
        assert (checkpoint.state.step, checkpoint.state.skipped_in_a_row) == (2, 2)
        assert checkpoint.optimizer["state"] == {}, "no step was ever taken"
        rows = [json.loads(line) for line in batch.read_text().splitlines()]
        assert rows
        assert all(row["logprobs"] and row["completion"] and row["prompt"] for row in rows)

    result = fit.train(config)
    assert result.state.stage is Stage.DONE
    assert result.state.skipped_in_a_row == 0
    by_step = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    skipped = {row["step"]: row["policy/skipped"] for row in by_step if "policy/skipped" in row}
    assert skipped == {1: 1, 2: 1} | dict.fromkeys(range(3, 5), 0)


def test_a_run_short_of_memory_works_in_smaller_parts_to_its_end(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(*LUCKY)
    sizes: list[int] = []

    def refuse(input_ids: Tensor, output: Any) -> None:
        sizes.append(input_ids.numel())
        if sizes[-1] > 250:
            torch.empty(2**50)

    hook_training(monkeypatch, refuse)
    result = fit.train(config)
    assert result.state.stage is Stage.DONE
    budget = result.state.micro_batch_tokens
    assert budget is not None
    assert budget < config.policy.micro_batch_tokens
    failed = [tokens for tokens in sizes if tokens > 250]
    assert failed
    assert all(then <= before / 2 for before, then in pairwise(failed)), "what did not fit once is not tried again"
    assert "does not fit into memory" in (result.run_dir / "log.txt").read_text()
