"""Which keys make a run another run."""

from __future__ import annotations

from collections.abc import Callable

from p2o.config import Config
from p2o.config.identity import WITHOUT_IDENTITY, differences, digest
from p2o.config.load import to_plain


def test_the_keys_that_may_differ_between_the_launches_of_a_run() -> None:
    assert {
        *("run_dir", "resume", "plan", "profile", "callbacks", "logger", "extensions.allow"),
        *("reward.workers", "policy.max_skipped_steps"),
        *("trainer.progress", "trainer.threads", "trainer.accelerator", "trainer.strategy", "trainer.devices"),
        *("trainer.nodes", "trainer.wait_s"),
        *("rollout.max_rows", "rollout.max_model_len", "rollout.kv_cache_gib", "rollout.gpu_memory_utilization"),
        *("rollout.tensor_parallel_size", "rollout.enforce_eager", "rollout.weight_transfer", "rollout.max_restarts"),
        *("rollout.start_s", "rollout.stall_s", "rollout.urls", "rollout.api_key_env", "rollout.adapter_dir"),
        *("rollout.concurrency", "rollout.timeout_s", "rollout.retry_s", "rollout.max_retries"),
        *("compare", "pass_at", "confidence", "resamples", "progress", "threads"),
    } == WITHOUT_IDENTITY


def test_a_key_without_identity_leaves_the_run_the_same(configure: Callable[..., Config]) -> None:
    watched = ("rollout.max_rows=7", "trainer.threads=3", "logger=csv", "callbacks=none")
    one, same = to_plain(configure()), to_plain(configure(*watched))
    other = to_plain(configure("policy.rollouts=7"))
    assert differences(one, same) == []
    assert digest(one) == digest(same) != digest(other)
    assert differences(one, other) == ["policy.rollouts: 6 there, 7 asked for"]
