"""``vllm serve`` as p2o starts it beside the trainer: ``python -m p2o.rollout.vllm_serve``, the arguments as JSON on
standard input. It listens on a Unix socket, so that the endpoints that replace weights are for this user alone.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from dataclasses import fields
from typing import Any, get_args

from p2o.rewards.sandbox import die_with_parent

GIB = 2**30


def main() -> None:
    options = json.load(sys.stdin)
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # the endpoints that load weights, sleep and wake
    os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    # What vLLM imports stays for good, so no collector need look at it: that takes a third off the time to start.
    gc.disable()
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    gc.freeze()
    gc.enable()
    try:
        arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
        vars(arguments).update(_arguments(options))
        uvloop.run(run_server(arguments))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # at an ordinary end, libraries would print more than the log's last lines hold


def _arguments(options: dict[str, Any]) -> dict[str, Any]:
    """vLLM's own arguments for what the trainer asks of it."""
    from vllm.config.lora import MaxLoRARanks
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    cache_gib = options.pop("kv_cache_gib") or (1.0 if on_cpu else None)
    if rank := options.pop("lora_rank"):
        # vLLM has kernels for some ranks only; an adapter of a smaller rank runs on those of the next one.
        supported = sorted(r for r in get_args(MaxLoRARanks) if r >= rank)
        if not supported:
            raise ValueError(f"tuning.r={rank} is above the largest rank that vLLM takes")
        options |= {"enable_lora": True, "max_lora_rank": supported[0], "max_loras": 1, "max_cpu_loras": 1}
    if on_cpu:
        from p2o.rollout import vllm_cpu

        options |= vllm_cpu.options()
    else:
        options["enable_sleep_mode"] = True
    if options.pop("shares_memory"):
        # the handles come as a pickle; the socket is this user's alone
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        options["weight_transfer_config"] = {"backend": "ipc"}
    extra = options.pop("extra")
    if unknown := extra.keys() - {field.name for field in fields(AsyncEngineArgs)}:
        raise ValueError(f"rollout.engine_args: vLLM's EngineArgs have no {', '.join(sorted(unknown))}")
    defaults = {
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "enable_prefix_caching": True,
        "enable_prompt_tokens_details": True,
        "disable_uvicorn_access_log": True,
        "uvicorn_log_level": "warning",
        "kv_cache_memory_bytes": int(cache_gib * GIB) if cache_gib else None,
    }
    return defaults | options | extra


def end_with_parent() -> None:
    """vLLM runs its engine in a process of its own, which would outlive a trainer that is killed and keep the GPU's
    memory. So this one ends with its parent, and each that is forked from it with its own."""
    die_with_parent()
    os.register_at_fork(after_in_child=die_with_parent)


if __name__ in ("__main__", "__mp_main__"):  # multiprocessing imports the main module in what it spawns
    end_with_parent()
if __name__ == "__main__":
    main()
