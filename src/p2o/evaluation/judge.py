"""Judging a model from a configuration to ``results.json``: the one function behind ``python -m p2o.evaluate``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from p2o.config.evaluation import EvaluateConfig
from p2o.config.schema import VllmServerRollout
from p2o.environment import record_environment
from p2o.evaluation.answer_progress import EvaluationProgress
from p2o.evaluation.answers import AnswerLog, answered, requests_of
from p2o.evaluation.benchmarks import Benchmark, load_benchmarks
from p2o.evaluation.judged_model import load_judged
from p2o.evaluation.protocol import Protocol, protocol_for
from p2o.evaluation.scores import RESULTS, Other, SetResult, average, judge_set
from p2o.evaluation.statistics import Resampling
from p2o.evaluation.template import read_template
from p2o.files import write_json
from p2o.logs import log_to, quiet_libraries
from p2o.policy.builders import ModelError
from p2o.policy.model import Policy
from p2o.rewards import GraderPool
from p2o.rollout.engines import build_engine
from p2o.rollout.hf.hf_engine import context_length
from p2o.rollout.ledger import Ledger
from p2o.rollout.prompts import PromptRenderer
from p2o.rollout.sampler import Sampler
from p2o.run_folder import run_folder
from p2o.types import Phase, SamplingParams, derive_seed, template_id

log = logging.getLogger(__name__)

VERSION = 0
"""The judged weights never change."""


@dataclass(frozen=True)
class _Part:
    """A set, how it is answered, and what has been answered of it."""

    benchmark: Benchmark
    protocol: Protocol
    log: AnswerLog


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Answer what is not answered yet, count, and write ``results.json``; returns its value.

    Raises ``RunFolderError``, ``DataError``, ``ModelError``, ``RewardError`` or ``EngineError``; each names the key or
    file and the fix.
    """
    other = None if config.compare is None else Other(config.compare)
    template = read_template(config.template)
    with run_folder(config) as run_dir, log_to(run_dir / "log.txt"):
        quiet_libraries()
        torch.set_num_threads(config.threads or os.cpu_count() or 1)
        parts = [_part(benchmark, config, template, run_dir) for benchmark in load_benchmarks(config)]
        if other is not None:
            other.check([part.benchmark.name for part in parts])
        if not all(part.log.complete for part in parts):
            record_environment(run_dir)
            _answer(parts, config, template)
        return _count(parts, config, template, other, run_dir / RESULTS)


def _part(benchmark: Benchmark, config: EvaluateConfig, template: str, run_dir: Path) -> _Part:
    if benchmark.report.faults:
        log.warning("%s", benchmark.report.render())
    protocol = protocol_for(benchmark.size, config.samples, config.temperature)
    requests = requests_of(benchmark, protocol, template, config.seed)
    path = run_dir / "answers" / f"{benchmark.name}.jsonl"
    return _Part(benchmark, protocol, AnswerLog(path, requests, config.chunk))


def _answer(parts: Sequence[_Part], config: EvaluateConfig, template: str) -> None:
    policy = load_judged(config.model, as_adapter=isinstance(config.rollout, VllmServerRollout))
    limit = _prompt_limit(policy, config)
    total, done = sum(len(part.log.requests) for part in parts), sum(part.log.done for part in parts)
    with ExitStack() as stack:
        longest = limit + config.rollout.max_new_tokens
        engine = build_engine(config, policy, {"rollout.max_prompt_tokens + rollout.max_new_tokens": longest})
        stack.callback(engine.close)
        engine.sync(VERSION)
        progress = stack.enter_context(EvaluationProgress(total, done, enabled=config.progress))
        for part in parts:
            if not part.log.complete:
                renderer = PromptRenderer(
                    policy.tokenizer, part.benchmark.prompt, limit, config.model.chat_template_kwargs
                )
                lengths = _prompt_lengths(part.benchmark, renderer, template)
                with GraderPool(part.benchmark.reward) as grader:
                    _answer_set(part, Sampler(engine, renderer, grader, Ledger()), lengths, config, progress)


def _answer_set(
    part: _Part, sampler: Sampler, lengths: Mapping[str, int], config: EvaluateConfig, progress: EvaluationProgress
) -> None:
    """``lengths`` are those of the prompts, by the question's id."""
    name = part.benchmark.name
    sampling = SamplingParams(part.protocol.temperature, config.rollout.max_new_tokens, config.rollout.top_p)
    for chunk in part.log.open_chunks():
        fitting = [i for i, one in enumerate(chunk) if lengths[one.problem.id] <= sampler.renderer.max_prompt_tokens]
        rollouts = sampler.sample(
            [chunk[i] for i in fitting],
            sampling,
            phase=Phase.VALIDATION,
            version=VERSION,
            progress=lambda done: progress.answering(name, done),
        )
        found = dict(zip(fitting, rollouts, strict=True))
        part.log.write(answered(one, lengths[one.problem.id], found.get(i)) for i, one in enumerate(chunk))
        progress.chunk_done(name, len(chunk), sum(len(rollout.tokens) for rollout in rollouts))


def _prompt_limit(policy: Policy, config: EvaluateConfig) -> int:
    """Tokens that a prompt may have so that its answer still fits into what the model attends to."""
    room = context_length(policy) - config.rollout.max_new_tokens
    if room < 1:
        raise ModelError(
            f"rollout.max_new_tokens={config.rollout.max_new_tokens} leaves no room for a question: the model attends "
            f"to {context_length(policy)} tokens"
        )
    return min(config.rollout.max_prompt_tokens, room)


def _prompt_lengths(benchmark: Benchmark, renderer: PromptRenderer, template: str) -> dict[str, int]:
    """Tokens of each question's prompt, by its id. Those that are too long are reported."""
    lengths = {problem.id: renderer.length(problem.question, template) for problem in benchmark.problems}
    long = [name for name, length in lengths.items() if length > renderer.max_prompt_tokens]
    if long:
        longest = max(long, key=lambda name: lengths[name])
        log.warning(
            f"{benchmark.name}: {len(long)} of {len(lengths)} questions have more than {renderer.max_prompt_tokens} "
            f"prompt tokens and count as wrong (longest: {longest}, {lengths[longest]} tokens)"
        )
    return lengths


def _count(
    parts: Sequence[_Part], config: EvaluateConfig, template: str, other: Other | None, path: Path
) -> dict[str, Any]:
    """The value of ``results.json``, written before it is compared: that may still find nothing to compare."""
    how = Resampling(config.confidence, config.resamples, derive_seed(config.seed, "evaluate", "bootstrap"))
    judged: dict[str, SetResult] = {}
    sets: dict[str, Any] = {}
    for part in parts:
        name, benchmark = part.benchmark.name, part.benchmark
        judged[name] = judge_set(part.log.rows(), config.pass_at, how)
        sets[name] = {
            **judged[name].figures,
            "temperature": part.protocol.temperature,
            "of_questions": benchmark.size,
            "left_out": dict(benchmark.report.faults),
        }
    results: dict[str, Any] = {
        "model": config.model.path,
        "template_id": template_id(template),
        "template": template,
        "seed": config.seed,
        "confidence": config.confidence,
        "resamples": config.resamples,
        "sets": sets,
        "average": average(judged, how),
        "comparison": None,
    }
    write_json(path, results)
    if other is not None:
        results["comparison"] = other.compared(judged, how)
        write_json(path, results)
    return results
