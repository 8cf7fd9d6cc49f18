"""Choosing the engine that ``rollout`` names. vLLM's are imported only where they are chosen."""

from __future__ import annotations

from pathlib import Path

from p2o.config.evaluation import EvaluateConfig
from p2o.config.schema import Config, CustomRollout, HfRollout, VllmRollout, VllmServerRollout
from p2o.extensions import load_object
from p2o.policy.model import Policy
from p2o.rollout.engine import Lengths, RolloutEngine


def build_engine(config: Config | EvaluateConfig, policy: Policy, longest: Lengths | None = None) -> RolloutEngine:
    """The engine of ``config.rollout``; it holds no policy version until its first ``sync``.

    Raises :class:`~p2o.rollout.engine.EngineError` if it needs what is not installed; here or at the first ``sync``
    also if it cannot hold the ``longest`` sequences of the run.
    """
    rollout, run_dir = config.rollout, Path(config.run_dir)
    if isinstance(rollout, HfRollout):
        from p2o.rollout.hf.hf_engine import HfEngine

        return HfEngine(policy, rollout, longest)
    if isinstance(rollout, (VllmRollout, VllmServerRollout)):
        from p2o.rollout.vllm import VllmEngine

        return VllmEngine(policy, rollout, longest, run_dir)
    if isinstance(rollout, CustomRollout):
        return load_object(rollout.factory, "rollout.factory")(policy, rollout)
    raise ValueError(f"rollout.kind={rollout.kind}: choose hf, vllm or vllm_server")
