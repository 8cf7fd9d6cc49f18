"""A run that plays itself: real groups, states and evolutions, written by the real log."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from p2o.algorithm.advantages import GroupAdvantages, group_advantages
from p2o.algorithm.policy_step import Objective
from p2o.algorithm.state import RunState, Stage
from p2o.callbacks.run_log import RunLog
from p2o.config import Config
from p2o.evolution.gepa_phase import Evolution
from p2o.reporting.epoch_summary import EpochSummary, epoch_line
from p2o.run_folder import open_run_folder
from p2o.types import PLAIN, Assignment, Grade, Group, Outcome, Phase, Problem, Rollout, Template

METRICS = {
    **{"loss": 0.0, "grad_norm": 2.0, "entropy": 0.0, "mean_ratio": 0.0, "clip_fraction": 0.0, "masked_fraction": 0.0},
    **{"mismatch_mean": 0.0, "mismatch_max": 0.0, "importance_weight": 0.0, "skipped": 0, "live": 1},
}
OUTCOMES = {
    "c": Grade(Outcome.CORRECT, 1.0, "4"),
    "w": Grade(Outcome.WRONG, 0.0, "5"),
    "u": Grade(Outcome.UNPARSEABLE, 0.0),
    "t": Grade(Outcome.TIMEOUT, 0.0),
}
SPELL = Template("Spell <b>slowly</b>.\nThen answer.", parents=(PLAIN,), dev_score=0.75, covers=frozenset("abc"))
COUNT = Template("Count twice.", parents=(SPELL.id,), dev_score=0.5, covers=frozenset("ad"))
EMPTY = Template("", dev_score=0.25, covers=frozenset("a"))


def build_group(
    problem_id: str, outcomes: str, templates: tuple[str, ...] | None = None, length: int = 3, text: str = "answer"
) -> Group:
    """A group with one rollout a letter (correct, wrong, unparseable, timeout), each a token longer than the last."""
    problem = Problem(id=problem_id, question=f"What is {problem_id}?", answer="4")
    rollouts = tuple(
        Rollout(
            problem_id=problem_id,
            template_id=templates[i] if templates else PLAIN,
            index=i,
            prompt_tokens=(1, 2),
            tokens=tuple(range(length + i)),
            logprobs=(-0.5,) * (length + i),
            text=f"{text} {i} to {problem_id} <b>&</b> ünïcode\nAnswer: 4",
            finish_reason="length" if letter == "t" else "stop",
            grade=OUTCOMES[letter],
            policy_version=7,
        )
        for i, letter in enumerate(outcomes)
    )
    return Group(problem=problem, plain_prompt=(1,), rollouts=rollouts)


def build_scored(*args: Any, **kwargs: Any) -> GroupAdvantages:
    """The group of :func:`build_group` with its advantages."""
    return group_advantages(build_group(*args, **kwargs), scale_by_std=False, baseline="group")


def build_evolution(epoch: int) -> tuple[Evolution, Assignment]:
    """Three templates, each the child of the one before; the next epoch uses the first evolved one."""
    evolution = Evolution(
        pool=(EMPTY, SPELL, COUNT),
        front=(SPELL, COUNT),
        dev_ids=("a", "b", "c", "d"),
        train_ids=("e", "f"),
        metric_calls=31,
        budget=30,
        reflection_calls=5,
        rejected={"leak": 2, "empty": 1},
        iterations=3,
        stop_reason="budget",
        failures={"timeout": 4},
    )
    return evolution, Assignment({SPELL.id: SPELL}, {"hard": (PLAIN, SPELL.id, SPELL.id)})


class Player:
    """Plays rounds and epochs of a run in the order in which the module reports them."""

    def __init__(self, config: Config, state: RunState) -> None:
        self.config = config
        self.state = state
        self.run_dir = open_run_folder(config)
        self.logger = TensorBoardLogger(
            self.run_dir, name="", version="tensorboard", default_hp_metric=False, purge_step=state.step + 1
        )
        self.log = RunLog(self.run_dir, config, [self.logger])
        engine = SimpleNamespace(scalars=lambda: {"probe_mismatch": 0.01, "restarts": 0.0, "cached_tokens": 64.0})
        self.module: Any = SimpleNamespace(state=state, sampler=SimpleNamespace(engine=engine))
        self.trainer: Any = None
        self.log.on_fit_start(self.trainer, self.module)

    def round(self, text: str = "answer") -> None:
        state = self.state
        state.round += 1
        state.step += 1
        state.ledger.add(Phase.POLICY, generated_tokens=100, rollouts=6, seconds=0.5)
        templates = (PLAIN, SPELL.id, SPELL.id)
        groups = [build_group(f"q{state.step}", "cwu", text=text), build_group("hard", "wwc", templates, text=text)]
        outputs = {
            "groups": [Objective.of(self.config).advantages(group) for group in groups],
            "metrics": METRICS | {"loss": 0.1 * state.step},
            "seconds": {"rollout": 0.5, "update": 0.25},
        }
        self.log.on_train_batch_end(self.trainer, self.module, outputs)

    def validation(self, accuracy: float) -> None:
        self.state.validation.history.append((self.state.step, accuracy))
        rollouts = build_group("held-out", "cw").rollouts
        self.log.on_plain_validation_end(self.trainer, self.module, accuracy, rollouts)

    def epoch(self, *, rounds: int = 2, text: str = "answer", evolve: bool = False) -> str:
        state = self.state
        while state.round < rounds:
            self.round(text)
        self.validation(0.1 * state.step)
        if evolve:
            self.log.on_evolution_end(self.trainer, self.module, *build_evolution(state.epoch))
        summary = EpochSummary(
            state.epoch,
            state.step,
            train_reward=0.5,
            val_accuracy=0.1 * state.step,
            hard=4,
            hard_all_fail=1,
            plain_pass_at_1=0.25,
            plain_pass_at_k=0.5,
            hard_plain_pass_at_1=0.125,
            evolved_pass_at_1=0.5,
            evolved_pass_at_k=0.75,
            evolved_k=5,
        )
        self.log.end_epoch(state, summary)
        state.epoch += 1
        state.round = 0
        return epoch_line(summary)

    def finish(self) -> Path:
        self.state.stage = Stage.DONE
        self.log.on_fit_end(self.trainer, self.module)
        self.logger.experiment.close()
        return self.run_dir
