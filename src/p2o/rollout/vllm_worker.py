"""The process that runs vLLM: JSON lines in, JSON lines out. Started as ``python -m p2o.rollout.vllm_worker``.

The first line holds the options; each further line is a call, ``{"call": name, ...}``, answered by ``{"ok": ...}`` or
``{"error": ...}``. While it generates it also sends a line for every sequence that ended and a sign of life. vLLM is
imported in this process alone, so the trainer's carries none of it, and what vLLM or a driver does to this process
(exit, hang, memory that never comes back) ends with it. After an error the process ends: a half-failed engine
is not used again.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, get_args

from p2o.rewards.sandbox import die_with_parent
from p2o.rollout import vllm_cpu

BEAT_SECONDS = 1.0
"""Signs of life come at most this often."""

GIB = 2**30


def main() -> None:
    die_with_parent()
    requests, replies = _take_over_streams()

    def reply(message: Mapping[str, Any]) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    worker: Worker | None = None
    try:
        for line in requests:
            message = json.loads(line)
            if worker is None:
                worker = Worker(message, reply)
                reply({"ok": {"context": worker.context}})
            else:
                reply({"ok": getattr(worker, message.pop("call"))(**message)})
    except Exception as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        raise


def _take_over_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes of the parent; what anything here prints goes to the log that stands behind stderr."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    return requests, replies


class Worker:
    """One vLLM engine. Its public methods, but for ``context``, are the calls."""

    def __init__(self, options: dict[str, Any], reply: Callable[[Mapping[str, Any]], None]) -> None:
        # The engine runs in this process. In one of its own it would outlive a trainer that is killed, and keep the
        # GPU's memory; further processes, of tensor_parallel_size above 1, watch this one and end with it.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # What vLLM imports stays for good, so no collector need look at it: that takes a third off the time to start.
        gc.disable()
        from vllm.config.lora import MaxLoRARanks
        from vllm.engine.arg_utils import EngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.llm_engine import LLMEngine

        gc.freeze()
        gc.enable()
        self._reply = reply
        self._cpu = current_platform.is_cpu()
        self._stop_ids: list[int] = options.pop("stop_token_ids")
        self._adapter: Any = None
        self._asleep: set[str] = set()
        cache_gib = options.pop("kv_cache_gib") or (1.0 if self._cpu else None)
        if rank := options.pop("lora_rank"):
            # vLLM has kernels for some ranks only; an adapter of a smaller rank runs on those of the next one.
            supported = sorted(r for r in get_args(MaxLoRARanks) if r >= rank)
            if not supported:
                raise ValueError(f"tuning.r={rank} is above the largest rank that vLLM takes")
            options |= {"enable_lora": True, "max_lora_rank": supported[0], "max_loras": 1, "max_cpu_loras": 1}
        if self._cpu:
            options |= vllm_cpu.options()
            vllm_cpu.multiply_adapters_plainly()
        else:
            options["enable_sleep_mode"] = True
        if options.pop("shares_memory"):
            # vLLM hands the handles on to its own processes as a pickle; they come from this process's parent alone.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
            options["weight_transfer_config"] = {"backend": "ipc"}
        extra = options.pop("extra")
        arguments = {
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            "enable_prefix_caching": True,
            "kv_cache_memory_bytes": int(cache_gib * GIB) if cache_gib else None,
        }
        self._engine = LLMEngine.from_engine_args(EngineArgs(**{**arguments, **options, **extra}))

    @property
    def context(self) -> int:
        """Tokens that a sequence may have, prompt included."""
        return int(self._engine.model_config.max_model_len)

    def load_adapter(self, name: str, number: int, folder: str) -> None:
        """Put a LoRA adapter in the place of the one before. ``name`` and ``number`` must be new ones."""
        from vllm.lora.request import LoRARequest

        self._wake("weights")
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
        self._adapter = LoRARequest(name, number, folder)
        if not self._engine.add_lora(self._adapter):
            raise RuntimeError(f"vLLM did not take the adapter in {folder}")
        self._forget_prefixes()

    def load_weights(self, folder: str) -> None:
        """Replace all weights by those of a model folder, in place."""
        self._wake("weights")
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._replaced()

    def read_weights(self, update: dict[str, Any]) -> None:
        """Replace all weights by the trainer's, read where these lie. ``update`` is an IPCWeightTransferUpdateInfo."""
        self._wake("weights")
        self._engine.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {"packed": False}})
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": update})
        self._engine.collective_rpc("finish_weight_update")
        self._replaced()

    def _replaced(self) -> None:
        if self._cpu:
            self._engine.apply_model(vllm_cpu.repack_head)
        self._forget_prefixes()

    def _forget_prefixes(self) -> None:
        """vLLM refuses while any request holds a part of the cache."""
        if not self._engine.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache: keys and values of older weights would be used")

    def generate(
        self,
        prompts: Sequence[tuple[int, Sequence[int], int]],
        temperature: float,
        top_p: float,
        max_tokens: int,
        adapter: bool,
    ) -> None:
        """``prompts`` are (number, token ids, seed); a line ``{"done": number, ...}`` goes out as each one ends."""
        for number, tokens, seed in prompts:
            params = _params(
                temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, stop_token_ids=self._stop_ids
            )
            self._add(str(number), tokens, params, adapter)
        for output in self._outputs():
            completion = output.outputs[0]
            self._reply(
                {
                    "done": int(output.request_id),
                    "tokens": list(completion.token_ids),
                    "logprobs": completion.logprobs.logprobs,
                    "finish_reason": completion.finish_reason,
                    "cached": output.num_cached_tokens or 0,
                }
            )

    def score(self, tokens: Sequence[int], count: int, temperature: float, seed: int, adapter: bool) -> dict[str, Any]:
        """Log-probs of ``tokens`` (from the second on) at temperature 1, and ``count`` tokens drawn behind them."""
        params = _params(temperature=temperature, max_tokens=count, seed=seed, prompt_logprobs=0, ignore_eos=True)
        self._add("0", tokens, params, adapter)
        (output,) = self._outputs()
        completion = output.outputs[0]
        return {
            "scored": output.prompt_logprobs.logprobs,
            "drawn": list(completion.token_ids),
            "drawn_logprobs": completion.logprobs.logprobs,
        }

    def sleep(self) -> None:
        """Hand the accelerator's memory back; level 1 keeps the weights in host memory. A CPU has nothing to hand."""
        if not self._cpu and not self._asleep:
            self._engine.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        """Weights first and the cache only before it is used, so that a sync has the cache's memory to itself."""
        if wanted := [part for part in parts if part in self._asleep]:
            self._engine.wake_up(tags=wanted)
            self._asleep -= set(wanted)

    def _outputs(self) -> Iterator[Any]:
        """Run until nothing is left, and yield each request as it ends."""
        beat = time.monotonic()
        while self._engine.has_unfinished_requests():
            yield from (output for output in self._engine.step() if output.finished)
            if time.monotonic() - beat > BEAT_SECONDS:
                beat = time.monotonic()
                self._reply({"alive": True})

    def _add(self, name: str, tokens: Sequence[int], params: Any, adapter: bool) -> None:
        self._wake("weights", "kv_cache")
        self._engine.add_request(
            name, {"prompt_token_ids": list(tokens)}, params, lora_request=self._adapter if adapter else None
        )


def _params(**fields: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, **fields
    )


if __name__ == "__main__":
    main()
