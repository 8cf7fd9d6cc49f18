"""From a configuration to a finished run: build the rooms, connect them, fit."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import Logger

from p2o.algorithm.losses import preset
from p2o.algorithm.module import P2OModule
from p2o.algorithm.state import RunState, Stage
from p2o.callbacks.checkpoint import CheckpointStore
from p2o.callbacks.checkpointing import Checkpointing
from p2o.callbacks.export import Export
from p2o.callbacks.graceful_stop import GracefulStop
from p2o.callbacks.growing_files import rewind_files
from p2o.callbacks.profile_table import ProfileTable
from p2o.callbacks.progress import Progress
from p2o.callbacks.run_log import RunLog
from p2o.config import ConfigError
from p2o.config.identity import digest
from p2o.config.instantiate import instantiate_nodes
from p2o.config.load import to_plain
from p2o.config.schema import Config, CustomRollout
from p2o.environment import platform_of, record_environment, record_overrides, warn_of_another_platform
from p2o.evolution.reflectors import Reflector, UnreachableError, build_reflector
from p2o.extensions import load_object
from p2o.faults import fault_point
from p2o.logs import log_to, quiet_libraries, silent
from p2o.policy.model import load_policy
from p2o.processes import cluster_environment, joined
from p2o.profile import profiling
from p2o.ranks import Ranks
from p2o.rewards import GraderPool
from p2o.rollout.engines import build_engine
from p2o.rollout.hf.hf_engine import context_length
from p2o.rollout.lengths import longest_sequences, within_context
from p2o.rollout.prompts import PromptRenderer
from p2o.rollout.sampler import Sampler
from p2o.run_folder import run_folder
from p2o.stop import Stop
from p2o.strategy import RanksStrategy
from p2o.tasks import DataError, ProblemSet, load_problems
from p2o.tasks.rounds import RoundDataModule, num_rounds
from p2o.types import SamplingParams

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """Where a run ended: its folder, its final state, and whether anything was left to do."""

    run_dir: Path
    state: RunState
    already_done: bool = False


def train(config: Config, stop: Stop | None = None, overrides: Sequence[str] = ()) -> RunResult:
    """Run or continue the job that ``config`` describes; ``stop`` may ask it to end early. ``overrides`` go to
    ``overrides.yaml``.

    Raises ``ConfigError``, ``DataError``, ``ModelError``, ``ReflectorError``, ``ExtensionError``, ``RunFolderError`` or
    ``CheckpointError`` before anything heavy if the input cannot work; each names the key or file and the fix.
    """
    stop = stop or Stop()
    with joined(config.trainer, stop) as ranks, ExitStack() as held:
        run_dir = ranks.from_first(lambda: held.enter_context(run_folder(config)))
        held.enter_context(log_to(run_dir / "log.txt") if ranks.is_first else silent())
        return _train(config, run_dir, stop, overrides, ranks)


def _train(config: Config, run_dir: Path, stop: Stop, overrides: Sequence[str], ranks: Ranks) -> RunResult:
    quiet_libraries()
    store = CheckpointStore(run_dir / "checkpoints", digest(to_plain(config)))
    checkpoint = ranks.in_turn(store.load)
    state = checkpoint.state if checkpoint is not None else RunState()
    if state.stage is Stage.DONE:
        return RunResult(run_dir, state, already_done=True)
    torch.set_num_threads(config.trainer.threads or max(1, (os.cpu_count() or 1) // ranks.local_size))
    ranks.from_first(lambda: record_environment(run_dir))
    ranks.from_first(lambda: record_overrides(run_dir, overrides))
    warn_of_another_platform(state.platform, platform := platform_of(config))
    state.platform = platform
    loggers = instantiate_nodes(config.logger, "logger", Logger, config.extensions.allow)  # type: ignore[type-abstract]
    watchers = instantiate_nodes(config.callbacks, "callbacks", Callback, config.extensions.allow)
    resumed, first = checkpoint is not None, ranks.is_first
    reflector = ranks.together(
        lambda: _named_parts(config, state, run_dir, resumed=resumed, first=first, sampler=lambda: sampler)
    )
    problems = ranks.in_turn(lambda: _load_problems(config, state, run_dir))
    ranks.from_first(lambda: rewind_files(run_dir, state.files))
    policy = ranks.in_turn(
        lambda: load_policy(config.model, config.tuning, seed=config.seed, fused_lora=config.policy.fused_lora)
    )
    policy.ranks = ranks
    renderer = PromptRenderer(
        policy.tokenizer, config.data.prompt, config.rollout.max_prompt_tokens, config.model.chat_template_kwargs
    )
    context = context_length(policy)
    training, validation = (
        within_context(of, renderer, context, config, name)
        for of, name in ((problems.train, "training"), (problems.val, "validation"))
    )
    longest = longest_sequences(config, renderer, context)
    with GraderPool(config.reward) as grader, closing(build_engine(config, policy, longest)) as engine:
        sampler = Sampler(engine, renderer, grader, state.ledger, ranks)
        module = P2OModule(config, policy, sampler, reflector, training, validation, state, run_dir)
        checkpoints = Checkpointing(
            store, run_dir, checkpoint, every=config.trainer.checkpoint_every, stop=stop, ranks=ranks
        )
        rounds = num_rounds(len(training), config) * config.trainer.epochs
        callbacks = [
            Export(store, run_dir),
            *([RunLog(run_dir, config, loggers)] if ranks.is_first else []),
            *([Progress(rounds)] if ranks.is_first and config.trainer.progress else []),
            *([ProfileTable()] if ranks.is_first and config.profile else []),
            *watchers,
            checkpoints,
            GracefulStop(stop, checkpoints),
        ]
        with profiling(enabled=config.profile):
            trainer = _trainer(config, state, callbacks, loggers, ranks, stop)
            fault_point("the run begins", state=state)
            trainer.fit(module, datamodule=RoundDataModule(training, config, state))
    return RunResult(run_dir, state)


def _load_problems(config: Config, state: RunState, run_dir: Path) -> ProblemSet:
    """The questions, refused if the run began with others."""
    problems = load_problems(config.data, config.reward)
    log.info("%s", problems.report.render())
    if state.data not in (None, problems.fingerprint):
        raise DataError(
            f"the questions have changed since the run in {run_dir} began: restore the data, or give another run_dir"
        )
    state.data = problems.fingerprint
    return problems


def _trainer(
    config: Config,
    state: RunState,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
    ranks: Ranks,
    stop: Stop,
) -> Trainer:
    """Lightning's side of the job. The position comes from ``state``, not from Lightning."""
    left = config.trainer.epochs - state.epoch - (state.stage is Stage.PROMPT)
    if state.stage is Stage.FINISH:
        left = 0
    environment = cluster_environment()
    return Trainer(
        accelerator=config.trainer.accelerator,
        devices=ranks.local_size,
        plugins=None if environment is None else [environment],
        num_nodes=ranks.size // ranks.local_size,
        strategy=RanksStrategy(ranks, stop) if torch.distributed.is_initialized() else "auto",
        max_epochs=left,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        logger=list(loggers),
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )


def _named_parts(
    config: Config, state: RunState, run_dir: Path, *, resumed: bool, first: bool, sampler: Callable[[], Sampler]
) -> Reflector | None:
    """Look up everything that the configuration names and that can be missing, before anything is loaded.

    Returns the reflector of the prompt phase, None for plain GRPO; it asks for ``sampler`` when it reflects, and the
    ``first`` rank alone asks whether it can be reached.
    """
    if config.trainer.accelerator == "gpu" and not torch.accelerator.is_available():
        raise ConfigError(["trainer.accelerator=gpu, but torch finds no GPU here: use trainer=cpu"])
    preset(config.policy.loss)
    if isinstance(config.rollout, CustomRollout):
        load_object(config.rollout.factory, "rollout.factory")
    if config.gepa.variant == "off":
        return None
    sampling = SamplingParams(config.reflector.temperature, config.reflector.max_new_tokens)
    reflector = build_reflector(
        config.reflector,
        config.gepa,
        complete=lambda texts, seeds: sampler().complete(texts, seeds, sampling, version=state.policy_version),
        count_tokens=lambda text: sampler().renderer.count_tokens(text),
        ledger=state.ledger,
        run_dir=run_dir,
    )
    try:
        if first:
            reflector.check()
    except UnreachableError as error:
        if not resumed:
            raise
        log.warning("%s. The run continues without it for now.", error)
    return reflector
