"""Choosing the engine that ``rollout`` names."""

from __future__ import annotations

from p2o.config.schema import Config, HfRollout
from p2o.policy.model import Policy
from p2o.rollout.engine import RolloutEngine
from p2o.rollout.hf import HfEngine


def build_engine(config: Config, policy: Policy) -> RolloutEngine:
    """The engine of ``config.rollout``; it holds no policy version until its first ``sync``."""
    if isinstance(config.rollout, HfRollout):
        return HfEngine(policy, config.rollout)
    raise ValueError(f"rollout.kind={config.rollout.kind}: choose hf")
