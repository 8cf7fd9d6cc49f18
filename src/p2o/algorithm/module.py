"""P2O as a LightningModule: the alternating maximisation, top to bottom.

Equation 4 is maximised over θ and Z in turn: a *policy phase* (GRPO in which hard questions are answered under
evolved templates while the gradient is taken on the plain question) and, at the epoch's end, a *prompt phase* (GEPA
evolves templates on the questions that are still hard, under the current policy).

Everything that is not the method (checkpoints, stops, logs, progress, export) is a callback;
:mod:`p2o.callbacks.hooks` lists the moments of a run at which the module calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim.lr_scheduler import LambdaLR

from p2o.algorithm.advantages import GroupAdvantages
from p2o.algorithm.assignment import assign, greedy_cover
from p2o.algorithm.hard_set import HardSet, Record, mine
from p2o.algorithm.policy_step import Hooks, Objective, update
from p2o.algorithm.state import RunState, Stage
from p2o.config.schema import Config
from p2o.evolution.gepa_phase import Evolution, Setting, evolve
from p2o.evolution.reflectors import Reflector
from p2o.faults import fault_point
from p2o.policy.model import Policy
from p2o.policy.optimizer import adamw
from p2o.profile import elapsed
from p2o.rollout.budget import exhausted, metric_calls_left
from p2o.rollout.ledger import Ledger
from p2o.rollout.sampler import Sampler
from p2o.tasks.rounds import num_rounds
from p2o.types import Assignment, Group, Phase, Problem, Request, Rollout, SamplingParams, derive_seed


@dataclass(frozen=True, slots=True)
class Alternation:
    """What a prompt phase produced: ``evolution`` is None if there was none, and ``note`` says why."""

    hard: HardSet
    evolution: Evolution | None
    assignment: Assignment
    note: str


class P2OModule(LightningModule):
    """One Lightning batch is one round: the problems whose groups make the next update.

    Optimization is manual, since a round has as many micro-batches as its tokens need and one denominator over all
    of them. The module itself has no position: everything that a resume needs is in ``state``.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        sampler: Sampler,
        reflector: Reflector | None,
        problems: Sequence[Problem],
        validation_problems: Sequence[Problem],
        state: RunState,
        run_dir: Path,
    ) -> None:
        super().__init__()
        self.ranks = sampler.ranks
        self.automatic_optimization = False
        self.model = policy.module
        self.config = config
        self.objective = Objective.of(config)
        self.policy = policy
        self.sampler = sampler
        self.reflector = reflector
        self.problems = {problem.id: problem for problem in problems}
        self.validation_problems = validation_problems
        self.state = state
        self.run_dir = run_dir
        self.resumable = True
        """Whether ``state`` and the weights are those after a whole round, so that a checkpoint may hold them."""

    # ------------------------------------------------------------------ the alternating maximisation

    def on_fit_start(self) -> None:
        """Finish what was under way when the checkpoint was written.

        Not in ``on_train_start``: Lightning asks for an epoch's rounds before that.
        """
        self.sampler.engine.sync(self.state.policy_version)
        if self.state.stage is Stage.START:
            self.validate_plain()
            self._enter(Stage.POLICY)
        elif self.state.stage is Stage.PROMPT:
            self.prompt_phase()

    def training_step(self, problems: tuple[Problem, ...], batch_idx: int) -> dict[str, Any]:
        """Policy phase, one round: answer, grade, update θ on the plain questions, record who failed."""
        state = self.state
        with self._last_round_kept():
            groups, sampling_s = elapsed(lambda: self.sample_groups(problems))
        self.resumable = False
        self.notify("on_sampling_end", groups)
        self.sampler.engine.sleep()
        scored = [self.objective.advantages(group) for group in groups]
        metrics, update_s = elapsed(lambda: self.update_policy(scored))
        state.ledger.add(Phase.POLICY, seconds=max(self.ranks.gather(lambda: update_s)))
        state.policy_version += 1
        state.records |= {group.problem.id: Record.of(group) for group in groups}
        state.round += 1
        state.step += 1
        return {"groups": scored, "metrics": metrics, "seconds": {"rollout": sampling_s, "update": update_s}}

    def on_train_batch_end(self, outputs: Any, batch: tuple[Problem, ...], batch_idx: int) -> None:
        """After the callbacks have recorded the round: hand the new policy to the engine, validate if due."""
        state, every = self.state, self.config.validation.every_rounds
        ended = self.trainer.is_last_batch or self._budget_spent()
        state.stage = Stage.PROMPT if ended else Stage.POLICY
        self.resumable = True
        with self._last_round_kept():
            self.sampler.engine.sync(state.policy_version)
            fault_point("the engine synced")
            if validated := every is not None and state.step % every == 0:
                self.validate_plain()
        self._log_accuracy()
        self.notify("on_position", ended or validated)  # validated: the best policy must be on disk

    def on_train_epoch_end(self) -> None:
        self.prompt_phase()
        self._log_accuracy()

    def on_train_end(self) -> None:
        if self.state.stage is not Stage.FINISH:
            self.state.stop_reason = "a callback stopped the training"

    def on_fit_end(self) -> None:
        self._enter(Stage.DONE)

    def prompt_phase(self) -> None:
        """Epoch end: mine the hard set, evolve templates on it, choose and assign them for the next epoch."""
        state, config = self.state, self.config
        validated = bool(state.validation.history) and state.validation.history[-1][0] == state.step
        if not validated and (config.validation.every_rounds is None or self._is_last_epoch()):
            self.validate_plain()
            self.notify("on_position", True)
        hard = mine(state.records, config.hard_set)
        evolution, note = self.evolve_templates(hard)
        assignment = self.assign_templates(hard, evolution)
        if evolution is not None and not assignment.by_problem:
            note = f"no usable template ({evolution.why_it_stopped}): the next epoch is plain GRPO"
        self.notify("on_alternation_end", Alternation(hard, evolution, assignment, note))
        state.assignment = assignment
        state.front = [t.text for t in evolution.front] if evolution is not None else []
        state.records = {}
        state.epoch += 1
        state.round = 0
        finished = state.epoch >= config.trainer.epochs or state.stop_reason is not None
        self._enter(Stage.FINISH if finished else Stage.POLICY)
        self.trainer.should_stop = finished

    # ------------------------------------------------------------------ policy phase

    def sample_groups(self, problems: Sequence[Problem]) -> list[Group]:
        """K graded rollouts per problem; a hard one's k-th rollout uses its k-th assigned template."""
        config, state, rollout = self.config, self.state, self.config.rollout
        k = config.policy.rollouts
        requests = [
            Request(problem, index, derive_seed(config.seed, Phase.POLICY, state.epoch, problem.id, index), template)
            for problem in problems
            for index, template in enumerate(state.assignment.texts(problem.id, k))
        ]
        sampling = SamplingParams(rollout.temperature, rollout.max_new_tokens, rollout.top_p)
        rollouts = self._sample(requests, sampling, Phase.POLICY)
        return [
            Group(problem, self.sampler.renderer.render(problem.question), tuple(rollouts[i * k : (i + 1) * k]))
            for i, problem in enumerate(problems)
        ]

    def update_policy(self, groups: Sequence[GroupAdvantages]) -> dict[str, float]:
        """One or several optimizer steps on the groups (equation 6); returns the metrics by name.

        Raises :class:`p2o.algorithm.nonfinite.NonFiniteError` if too many steps in a row are skipped.
        """
        state, policy = self.state, self.config.policy
        fault_point("update", step=state.step)
        tokens = state.micro_batch_tokens or policy.micro_batch_tokens
        metrics = update(
            self.policy,
            cast(LightningOptimizer, self.optimizers()),
            self.schedule,
            groups,
            replace(self.objective, policy=replace(policy, micro_batch_tokens=tokens)),
            seed=derive_seed(self.config.seed, "update", state.step),
            skipped_before=state.skipped_in_a_row,
            hooks=Hooks(self.manual_backward, lambda *at: self.notify("on_micro_batch_end", *at)),
        )
        fault_point("the update done")
        state.skipped_in_a_row = int(metrics["skipped_in_a_row"])
        state.micro_batch_tokens = int(metrics["micro_batch_tokens"])
        trained, scored = int(metrics["trained_tokens"]), int(metrics["scored_tokens"])
        state.ledger.add(Phase.POLICY, trained_tokens=trained, scored_tokens=scored)
        return metrics

    # ------------------------------------------------------------------ prompt phase

    def evolve_templates(self, hard: HardSet) -> tuple[Evolution | None, str]:
        """Evolve templates on the hard set with GEPA; None and the reason if there is nothing to do."""
        config, state = self.config, self.state
        if self.reflector is None:
            return None, ""
        if self._is_last_epoch() or self._budget_spent():
            return None, "the run ends here: no epoch would use the templates"
        if len(hard.ids) < config.hard_set.min_size:
            return None, f"{len(hard.ids)} hard questions are fewer than hard_set.min_size={config.hard_set.min_size}"
        setting = Setting(
            epoch=state.epoch,
            seed=derive_seed(config.seed, Phase.EVOLUTION, state.epoch),
            run_dir=self.run_dir / "evolution" / f"epoch-{state.epoch:03d}",
            count_tokens=self.sampler.renderer.count_tokens,
            ledger=state.ledger,
            warm_start=state.front if config.gepa.warm_start else (),
            progress=lambda at: self.notify("on_evolution_progress", at),
            limit=metric_calls_left(config.budget, state.ledger),
        )
        questions = [self.problems[problem_id] for problem_id in hard.ids]
        reflector, evaluate = self.reflector, self.evaluate_templates
        # Rank 0 leads; the others share each evaluation that it asks for, and learn what it found and what that cost.
        evolution, costs = self.ranks.lead(
            lambda: (evolve(questions, evaluate, reflector, config.gepa, setting), state.ledger.to_json()),
            self.sampler.serve,
        )
        state.ledger.by_phase = Ledger.from_json(costs).by_phase
        fault_point("evolved")
        if not self._budget_spent() and evolution.stop_reason == "run_budget":
            state.stop_reason = f"budget.metric_calls={config.budget.metric_calls} does not cover another template"
        return evolution, ""

    def evaluate_templates(self, requests: Sequence[Request]) -> list[Rollout]:
        """Answer questions under candidate templates with the current policy, all in one call."""
        sampling = SamplingParams(self.config.gepa.temperature, self.config.rollout.max_new_tokens)
        return self._sample(requests, sampling, Phase.EVOLUTION)

    def assign_templates(self, hard: HardSet, evolution: Evolution | None) -> Assignment:
        """Greedy cover of the dev questions, then K weighted draws per hard question; empty without templates."""
        if evolution is None:
            return Assignment()
        assignment = assign(
            hard.ids,
            evolution.dev_ids,
            greedy_cover(evolution.pool),
            k=self.config.policy.rollouts,
            plain_rollouts=self.config.hard_set.plain_rollouts,
            same_template=self.config.gepa.same_template,
            seed=derive_seed(self.config.seed, "assignment", self.state.epoch),
        )
        self.notify("on_evolution_end", evolution, assignment)
        fault_point("assigned")
        return assignment

    # ------------------------------------------------------------------ validation

    def validate_plain(self) -> float:
        """Accuracy on the held-out questions, always plain: no template is ever used here."""
        config, state = self.config, self.state
        requests = [
            Request(problem, index, derive_seed(config.seed, Phase.VALIDATION, problem.id, index))
            for problem in self.validation_problems
            for index in range(config.validation.samples)
        ]
        sampling = SamplingParams(config.validation.temperature, config.rollout.max_new_tokens)
        rollouts = self._sample(requests, sampling, Phase.VALIDATION)
        accuracy = sum(rollout.correct for rollout in rollouts) / len(rollouts)
        state.validation.history.append((state.step, accuracy))
        self.notify("on_plain_validation_end", accuracy, rollouts)
        fault_point("validated")
        return accuracy

    # ------------------------------------------------------------------ Lightning's side

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; linear warm-up, then constant.

        The update steps the schedule, once per optimizer step, so Lightning never sees it.
        """
        config = self.config
        self.optimizer = adamw(self.policy, config.tuning.learning_rate, config.policy)
        rounds = num_rounds(len(self.problems), config) * config.trainer.epochs
        warmup = config.policy.warmup_fraction * rounds * config.policy.updates_per_round
        self.schedule = LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))
        return self.optimizer

    def configure_model(self) -> None:
        """``trainer.strategy``: with fsdp2 the ranks split the weights, with ddp each has all of them."""
        if self.config.trainer.strategy == "fsdp2" and not self.policy.sharded:
            self.policy.shard("cuda" if self.config.trainer.accelerator == "gpu" else "cpu")

    def notify(self, hook: str, *facts: Any) -> None:
        """Call ``hook`` of every callback that has it."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            method: Callable[..., None] | None = getattr(callback, hook, None)
            if method is not None:
                method(self.trainer, self, *facts)

    @contextmanager
    def _last_round_kept(self) -> Iterator[None]:
        """If the block raises, reset the ledger to the last whole round."""
        ledger = self.state.ledger.to_json()
        try:
            yield
        except BaseException:
            self.state.ledger = Ledger.from_json(ledger)
            raise

    def _log_accuracy(self) -> None:
        """For callbacks that monitor a metric, such as Lightning's EarlyStopping."""
        if (accuracy := self.state.validation.final) is not None:
            self.log("validation/accuracy", accuracy, logger=False)

    def _enter(self, stage: Stage) -> None:
        """Every change of stage is a point to resume from."""
        self.state.stage = stage
        self.notify("on_position", True)

    def _sample(self, requests: Sequence[Request], sampling: SamplingParams, phase: Phase) -> list[Rollout]:
        return self.sampler.sample(
            requests,
            sampling,
            phase=phase,
            version=self.state.policy_version,
            progress=lambda done: self.notify("on_rollout_end", phase, done, len(requests)),
        )

    def _is_last_epoch(self) -> bool:
        return self.state.epoch + 1 >= self.config.trainer.epochs

    def _budget_spent(self) -> bool:
        reason = exhausted(self.config.budget, self.state.ledger)
        if reason is not None:
            self.state.stop_reason = reason
            self.trainer.should_stop = True
        return reason is not None
