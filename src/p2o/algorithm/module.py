"""P2O as a LightningModule: the alternating maximisation, top to bottom.

Equation 4 is maximised over θ and Z in turn: a *policy phase* (GRPO in which hard questions are answered under
evolved templates while the gradient is taken on the plain question) and, at the epoch's end, a *prompt phase* (GEPA
evolves templates on the questions that are still hard, under the current policy).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim.lr_scheduler import LambdaLR

from p2o import json_lines, profile
from p2o.algorithm.assignment import assign, greedy_cover
from p2o.algorithm.budget import exhausted, metric_calls_left
from p2o.algorithm.epoch_summary import epoch_summary
from p2o.algorithm.hard_set import HardSet, Record, mine
from p2o.algorithm.importance import Truncation
from p2o.algorithm.nonfinite import NonFiniteError
from p2o.algorithm.policy_step import update
from p2o.algorithm.samples import advantages_of
from p2o.algorithm.state import RunState, Stage
from p2o.algorithm.update_metrics import UpdateMetrics
from p2o.callbacks import positions
from p2o.callbacks.checkpoint import Checkpoint, CheckpointError, CheckpointStore, read_checkpoint
from p2o.callbacks.progress import Progress
from p2o.callbacks.stop import Stop, Stopped
from p2o.config.identity import digest
from p2o.config.load import to_plain
from p2o.config.schema import Config
from p2o.evolution.gepa_phase import Evolution, evolve
from p2o.evolution.reflectors import Reflector
from p2o.policy.model import Policy
from p2o.policy.optimizer import adamw
from p2o.reporting.reporter import Reporter
from p2o.rollout.engine import EngineError
from p2o.rollout.ledger import Ledger
from p2o.rollout.sampler import Sampler
from p2o.types import Assignment, Group, Phase, Problem, Request, Rollout, SamplingParams, derive_seed

log = logging.getLogger(__name__)


class P2OModule(LightningModule):
    """One Lightning batch is one round: the problems whose groups make the next update.

    Optimization is manual, since a round has as many micro-batches as its tokens need and one denominator over all
    of them. The module owns no position of its own: everything that a resume needs is in ``state``.
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
        *,
        total_rounds: int,
        run_dir: Path,
        reporter: Reporter,
        progress: Progress,
        resume_from: Checkpoint | None = None,
        stop: Stop | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = policy.module
        self.config = config
        self.policy = policy
        self.sampler = sampler
        self.reflector = reflector
        self.problems = {problem.id: problem for problem in problems}
        self.validation_problems = validation_problems
        self.state = state
        self.total_rounds = total_rounds
        self.run_dir = run_dir
        self.reporter = reporter
        self.progress = progress
        self.store = CheckpointStore(run_dir / "checkpoints", digest(to_plain(config)))
        self._resume_from = resume_from
        self._stop = stop or Stop()
        self._saved_step = state.step

    # ------------------------------------------------------------------ the alternating maximisation

    def on_fit_start(self) -> None:
        """Restore what the checkpoint holds, and finish what was under way when it was written.

        This hook, since Lightning asks for an epoch's rounds before ``on_train_start``.
        """
        self._restore()
        self.reporter.start(self.state)
        self.sampler.engine.sync(self.state.policy_version)
        if self.state.stage is Stage.START:
            self.validate_plain()
            self._enter(Stage.POLICY)
        elif self.state.stage is Stage.PROMPT:
            self.prompt_phase()

    def training_step(self, problems: tuple[Problem, ...], batch_idx: int) -> None:
        """Policy phase, one round: answer, grade, update θ on the plain questions, note who failed."""
        with self._whole_rounds_saved():
            groups, sampling_s = profile.elapsed(lambda: self.sample_groups(problems))
        with self._stop.deferred():
            self._learn(groups, sampling_s)

    def _learn(self, groups: Sequence[Group], sampling_s: float) -> None:
        """The second half of a round: from here on a stop waits for the checkpoint, so that the round is not lost."""
        state = self.state
        self.sampler.engine.sleep()
        metrics, update_s = profile.elapsed(lambda: self.update_policy(groups))
        state.ledger.add(Phase.POLICY, seconds=update_s)
        state.policy_version += 1
        for group in groups:
            state.records[group.problem.id] = Record.of(group)
        state.round += 1
        state.step += 1
        scalars = self.reporter.round(
            state,
            groups,
            metrics,
            engine=self.sampler.engine.scalars(),
            seconds={"rollout": sampling_s, "update": update_s},
            advantages={group.problem.id: advantages_of(group, self.config.policy).values for group in groups},
        )
        self.progress.round_done(state, scalars)
        profile.report(f"round {state.step}")
        ended = self.trainer.is_last_batch or self._budget_spent()
        state.stage = Stage.PROMPT if ended else Stage.POLICY
        with self._whole_rounds_saved():
            self.sampler.engine.sync(state.policy_version)
            if validated := self._validation_due():
                self.validate_plain()
        due = state.step % self.config.trainer.checkpoint_every == 0
        if ended or due or validated or self._stop.asked:  # validated: the best policy must be on disk
            self.checkpoint()

    def on_train_epoch_end(self) -> None:
        self.prompt_phase()

    def on_fit_end(self) -> None:
        """Keep the policy and tell what was learnt."""
        self.export()
        self.reporter.finish(self.state)
        self._enter(Stage.DONE)

    def prompt_phase(self) -> None:
        """Epoch end: mine the hard set, evolve templates on it, choose and assign them for the next epoch."""
        state, config = self.state, self.config
        validated = bool(state.validation.history) and state.validation.history[-1][0] == state.step
        if not validated and (config.validation.every_rounds is None or self._is_last_epoch()):
            self.validate_plain()
            self.checkpoint()
        hard = mine(state.records, config.hard_set)
        evolution, note = self.evolve_templates(hard)
        profile.report(f"the prompt phase of epoch {state.epoch}")
        assignment = self.assign_templates(hard, evolution)
        if evolution is not None and not assignment.by_problem:
            note = f"no template to use ({evolution.why_it_stopped}): the next epoch is plain GRPO"
        summary = epoch_summary(state, hard, evolution, assignment, note)
        state.assignment = assignment
        state.front = [t.text for t in evolution.front] if evolution is not None else []
        state.epochs.append(summary)
        state.records = {}
        state.epoch += 1
        state.round = 0
        self.progress.epoch_done(self.reporter.epoch(state, summary))
        self._enter(Stage.FINISH if self._finished() else Stage.POLICY)
        self.trainer.should_stop = state.stage is Stage.FINISH

    # ------------------------------------------------------------------ policy phase

    def sample_groups(self, problems: Sequence[Problem]) -> list[Group]:
        """K graded rollouts a problem; a hard one's k-th rollout is made under its k-th assigned template."""
        config, state = self.config, self.state
        k = config.policy.rollouts
        requests = [
            Request(problem, index, derive_seed(config.seed, Phase.POLICY, state.epoch, problem.id, index), template)
            for problem in problems
            for index, template in enumerate(state.assignment.texts(problem.id, k))
        ]
        rollouts = self._sample(requests, self._policy_sampling(), Phase.POLICY, self.progress.rollouts(len(requests)))
        return [
            Group(problem, self.sampler.renderer.render(problem.question), tuple(rollouts[i * k : (i + 1) * k]))
            for i, problem in enumerate(problems)
        ]

    def update_policy(self, groups: Sequence[Group]) -> dict[str, float]:
        """One or several optimizer steps on the groups (equation 6); returns the metrics by name.

        Raises :class:`NonFiniteError` with the batch saved where steps fail again and again.
        """
        state = self.state
        try:
            metrics = self._update(groups)
        except NonFiniteError as error:
            path = self.run_dir / "failed_batch.jsonl"
            json_lines.rewrite(path, error.rows())
            error.add_note(f"the last of their batches is in {path}")
            raise
        state.skipped_in_a_row = metrics.skipped_in_a_row
        state.micro_batch_tokens = metrics.micro_batch_tokens
        state.ledger.add(
            Phase.POLICY, trained_tokens=int(metrics.trained_tokens), scored_tokens=int(metrics.scored_tokens)
        )
        return {name: float(value) for name, value in dataclasses.asdict(metrics).items()}

    def _update(self, groups: Sequence[Group]) -> UpdateMetrics:
        config, state = self.config, self.state
        tokens = state.micro_batch_tokens or config.policy.micro_batch_tokens
        return update(
            self.policy,
            cast(LightningOptimizer, self.optimizers()),
            groups,
            dataclasses.replace(config.policy, micro_batch_tokens=tokens),
            config.distillation,
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
            seed=derive_seed(config.seed, "update", state.step),
            truncation=Truncation(config.rollout.importance, config.rollout.importance_cap),
            skipped_before=state.skipped_in_a_row,
            scheduler=self.schedule,
            backward=self.manual_backward,
            progress=self._after_micro_batch(self.progress.update()),
        )

    def _after_micro_batch(self, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """``progress``, and the place where a stop may cut an update: its round begins at the checkpoint on disk."""

        def done(batches: int, total: int) -> None:
            progress(batches, total)
            if self._saved_step == self.state.step:
                self._stop.check()

        return done

    # ------------------------------------------------------------------ prompt phase

    def evolve_templates(self, hard: HardSet) -> tuple[Evolution | None, str]:
        """Evolve templates on the hard set with GEPA; None, with the reason, where there is nothing to do."""
        config, state = self.config, self.state
        if self.reflector is None:
            return None, ""
        if self._is_last_epoch() or self._budget_spent():
            return None, "the run ends here: no epoch would use the templates"
        if len(hard.ids) < config.hard_set.min_size:
            return None, f"{len(hard.ids)} hard questions are fewer than hard_set.min_size={config.hard_set.min_size}"
        evolution = evolve(
            [self.problems[problem_id] for problem_id in hard.ids],
            self.evaluate_templates,
            self.reflector,
            config.gepa,
            epoch=state.epoch,
            seed=derive_seed(config.seed, Phase.EVOLUTION, state.epoch),
            run_dir=self.run_dir / "evolution" / f"epoch-{state.epoch:03d}",
            count_tokens=self.sampler.renderer.count_tokens,
            ledger=state.ledger,
            warm_start=state.front if config.gepa.warm_start else (),
            progress=self.progress.evolution(),
            limit=metric_calls_left(config.budget, state.ledger),
        )
        if not self._budget_spent() and evolution.stop_reason == "run_budget":
            state.stop_reason = f"budget.metric_calls={config.budget.metric_calls} pays for no further template"
        return evolution, ""

    def evaluate_templates(self, requests: Sequence[Request]) -> list[Rollout]:
        """Answer questions under candidate templates with the current policy, all in one call."""
        gepa = self.config.gepa
        sampling = SamplingParams(gepa.temperature, self.config.rollout.max_new_tokens)
        return self._sample(requests, sampling, Phase.EVOLUTION)

    def assign_templates(self, hard: HardSet, evolution: Evolution | None) -> Assignment:
        """Greedy cover of the dev questions, then K weighted draws a hard question; empty without templates."""
        if evolution is None:
            return Assignment()
        cover = greedy_cover(evolution.pool)
        assignment = assign(
            hard.ids,
            evolution.dev_ids,
            cover,
            k=self.config.policy.rollouts,
            plain_rollouts=self.config.hard_set.plain_rollouts,
            same_template=self.config.gepa.same_template,
            seed=derive_seed(self.config.seed, "assignment", self.state.epoch),
        )
        self.reporter.evolution(self.state, evolution, assignment)
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
        rollouts = self._sample(requests, sampling, Phase.VALIDATION, self.progress.validation(len(requests)))
        accuracy = sum(rollout.correct for rollout in rollouts) / len(rollouts)
        state.validation.history.append((state.step, accuracy))
        self.reporter.validation(state, accuracy, rollouts)
        profile.report(f"the validation at step {state.step}")
        return accuracy

    # ------------------------------------------------------------------ Lightning's side

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; linear warm-up, then constant.

        The schedule is stepped by the update, which alone knows when a step was taken, so Lightning never sees it.
        """
        config = self.config
        self.optimizer = adamw(self.policy, config.tuning.learning_rate, config.policy)
        warmup = config.policy.warmup_fraction * self.total_rounds * config.policy.updates_per_round
        self.schedule = LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / (warmup + 1)))
        return self.optimizer

    def export(self) -> None:
        """Write the best checkpoint's policy to ``model/``, for transformers and peft."""
        try:
            best = self.store.read(self.store.best)
        except (CheckpointError, FileNotFoundError) as error:
            log.warning("%s: model/ is the last policy, not the best one", error)
            best = read_checkpoint(self.store.last)
        self.policy.load_state_dict(best.trainable)
        self.policy.save(self.run_dir / "model")
        self.policy.load_state_dict(read_checkpoint(self.store.last).trainable)

    def checkpoint(self) -> None:
        """Write ``last.ckpt``; where the newest validation is the best so far, keep it as ``best.ckpt`` too."""
        self.reporter.flush()
        self.state.files = positions.positions(self.run_dir)
        self.store.save(
            Checkpoint(
                trainable=self.policy.state_dict(),
                optimizer=self.optimizer.state_dict(),
                scheduler=self.schedule.state_dict(),
                state=self.state,
            )
        )
        self._saved_step = self.state.step
        self._mark_best()

    def _mark_best(self) -> None:
        best = self.state.validation.best
        if best is not None and best[0] == self.state.step:
            self.store.mark_best()

    @contextmanager
    def _whole_rounds_saved(self) -> Iterator[None]:
        """Where a stop or a broken engine ends the block, the rounds that no checkpoint has yet are written.

        Their cost too, without that of what was cut short.
        """
        ledger = self.state.ledger.to_json()
        try:
            yield
        except (Stopped, EngineError):
            if self._saved_step != self.state.step:
                self.state = dataclasses.replace(self.state, ledger=Ledger.from_json(ledger))
                self.checkpoint()
            raise

    def _restore(self) -> None:
        if self._resume_from is not None:
            self.policy.load_state_dict(self._resume_from.trainable)
            self.optimizer.load_state_dict(self._resume_from.optimizer)
            self.schedule.load_state_dict(self._resume_from.scheduler)
            self._resume_from = None
            self._mark_best()  # in case the run was killed between the checkpoint and the mark

    def _enter(self, stage: Stage) -> None:
        """Every change of stage is a point to come back to."""
        self.state.stage = stage
        self.checkpoint()

    def _sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingParams,
        phase: Phase,
        progress: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        return self.sampler.sample(
            requests, sampling, phase=phase, version=self.state.policy_version, progress=progress
        )

    def _policy_sampling(self) -> SamplingParams:
        rollout = self.config.rollout
        return SamplingParams(rollout.temperature, rollout.max_new_tokens, rollout.top_p)

    def _validation_due(self) -> bool:
        every = self.config.validation.every_rounds
        return every is not None and self.state.step % every == 0

    def _is_last_epoch(self) -> bool:
        return self.state.epoch + 1 >= self.config.trainer.epochs

    def _budget_spent(self) -> bool:
        reason = exhausted(self.config.budget, self.state.ledger)
        if reason is not None:
            self.state.stop_reason = reason
            self.trainer.should_stop = True
        return reason is not None

    def _finished(self) -> bool:
        return self.state.epoch >= self.config.trainer.epochs or self.state.stop_reason is not None
