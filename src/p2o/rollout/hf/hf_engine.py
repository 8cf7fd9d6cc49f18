"""The transformers engine: one decoding loop for groups of rollouts, on the policy's own module.

Shapes: R rows (sequences being decoded), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from p2o.config.schema import HfRollout
from p2o.faults import fault_point
from p2o.policy.model import Policy
from p2o.profile import timed
from p2o.rollout.engine import Lengths, OnFinish, refuse_lengths, refuse_long, refuse_stale
from p2o.rollout.hf.cuda_graphs import GraphedStep
from p2o.rollout.hf.decoding_model import Twin
from p2o.rollout.hf.prefix_tree import PrefixTree
from p2o.rollout.hf.row_cache import RowCache
from p2o.rollout.hf.token_sampling import draw, uniforms
from p2o.types import Generation, Prompt, SamplingParams

PREFILL_TOKENS = 1024
"""Nodes at which a prefix tree is computed; its attention is quadratic in them."""

SIMILAR_ROWS = 4
"""On a CPU a step with a new number of rows waits for its kernels to be compiled (7 of 105 ms). Padded to a multiple of
this, most steps repeat an earlier number."""

FIX = "use a model with a longer context"


class HfEngine:
    """Samples from a :class:`~p2o.policy.model.Policy` in this process, without a second model.

    ``sync`` builds an inference copy (see :mod:`p2o.rollout.hf.decoding_model`) of the current weights; later updates
    of the policy do not reach it, so every generation is made by the version that it is stamped with.
    """

    def __init__(self, policy: Policy, config: HfRollout, longest: Lengths | None = None) -> None:
        self.policy = policy
        self.config = config
        self.context = context_length(policy)
        refuse_lengths(longest or {}, self.context, FIX)
        self.stop_ids = stop_token_ids(policy)
        self._version = -1
        self._twin: Twin | None = None
        self._reference: Twin | None = None

    @property
    def version(self) -> int:
        return self._version

    def sync(self, version: int) -> None:
        self._twin = None  # the old copy is freed before the new one is made
        with timed("sync"):
            self._twin = Twin(self.policy.causal_lm, self.policy.dtype)
        self._version = version

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        *,
        version: int,
        reference: bool = False,
        on_finish: OnFinish | None = None,
    ) -> list[Generation]:
        refuse_stale(self._version, version)
        refuse_long(prompts, sampling, self.context, FIX)
        if not prompts:
            return []
        decode = _Decode(self._twin_of(reference), self, prompts, sampling, on_finish)
        return decode.run()

    def sleep(self) -> None:
        """Drop the copy, which is useless once the policy moves on; the next sync makes another."""
        self._twin = None
        self._version = -1

    def scalars(self) -> Mapping[str, float]:
        """Empty: it computes in the trainer's process on the trainer's weights."""
        return {}

    def close(self) -> None:
        self._twin = self._reference = None
        self._version = -1

    def _twin_of(self, reference: bool) -> Twin:
        assert self._twin is not None
        if not reference or self.policy.lora:
            self._twin.use_adapter(not reference)
            return self._twin
        if self._reference is None:
            with self.policy.reference():
                self._reference = Twin(self.policy.causal_lm, self.policy.dtype)
        return self._reference


def context_length(policy: Policy) -> int:
    """Tokens of a sequence, prompt included, that the model can attend to."""
    config = policy.causal_lm.config
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(x for x in (window, getattr(config, "max_position_embeddings", None), 2**31) if x)


def stop_token_ids(policy: Policy) -> frozenset[int]:
    """Every id that ends a sequence, by the generation config or by the tokenizer."""
    configured = policy.causal_lm.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in (*ids, policy.tokenizer.eos_token_id) if i is not None)


@dataclass(slots=True)
class _Row:
    """A sequence being decoded: which prompt it belongs to and what it has so far."""

    prompt: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    ended: bool = False


class _Decode:
    """One call of generate. Rows 0 … R-1 of the cache are in use; free ones are filled from the queue.

    A row enters the loop with all but the last token of its prompt in the cache: its first step feeds that last
    token, so that logits are computed in one place only.
    """

    def __init__(
        self,
        twin: Twin,
        engine: HfEngine,
        prompts: Sequence[Prompt],
        sampling: SamplingParams,
        on_finish: OnFinish | None,
    ) -> None:
        policy = engine.policy
        self.twin = twin
        self.prompts = prompts
        self.sampling = sampling
        self.on_finish = on_finish
        self.stop_ids = engine.stop_ids
        self.tokenizer = policy.tokenizer
        self.device = policy.device
        self.capacity = min(engine.config.max_rows, len(prompts))
        self.cache = RowCache(self.capacity, twin.key_heads, policy.dtype, self.device)
        self.queue = sorted(range(len(prompts)), key=lambda i: prompts[i].tokens, reverse=True)
        self.rows: list[_Row] = []
        self.results: dict[int, Generation] = {}
        self.uniforms = torch.zeros(len(prompts), sampling.max_new_tokens)
        if sampling.temperature > 0:
            self.uniforms = uniforms([p.seed for p in prompts], sampling.max_new_tokens)

    def run(self) -> list[Generation]:
        graphs = GraphedStep(self._next, self.capacity, self.device) if self.device.type == "cuda" else None
        while self.rows or self.queue:
            self._retire()
            if self.rows:
                fault_point("a step of decoding")
                with timed("decode", tokens=len(self.rows)):
                    self._step(graphs)
        return [self.results[i] for i in range(len(self.prompts))]

    def _retire(self) -> None:
        """Fill the places of ended rows from the queue, or close the gaps."""
        free = [i for i, row in enumerate(self.rows) if row.ended]
        fresh: list[int] = []
        while self.queue and (free or len(self.rows) < self.capacity):
            row = _Row(self.queue.pop())
            if free:
                slot = free.pop(0)
                self.rows[slot] = row
            else:
                slot = len(self.rows)
                self.rows.append(row)
            fresh.append(slot)
        self._prefill(fresh)
        for slot in reversed(free):
            last = self.rows.pop()
            if slot < len(self.rows):
                self.rows[slot] = last
                self.cache.move(len(self.rows), slot)

    def _prefill(self, slots: Sequence[int]) -> None:
        """Compute the prompts of fresh rows, each shared beginning once."""
        tree, paths, rows = PrefixTree(), [], []
        # Sorted by their tokens, prompts that begin alike meet in one tree.
        for slot in sorted(slots, key=lambda slot: self.prompts[self.rows[slot].prompt].tokens):
            if path := tree.add(self.prompts[self.rows[slot].prompt].tokens[:-1]):
                paths.append(path)
                rows.append(slot)
            if len(tree) >= PREFILL_TOKENS:
                self._compute(tree, paths, rows)
                tree, paths, rows = PrefixTree(), [], []
        if rows:
            self._compute(tree, paths, rows)

    def _compute(self, tree: PrefixTree, paths: Sequence[Sequence[int]], rows: Sequence[int]) -> None:
        with timed("prefill", tokens=len(tree)):
            self.cache.prefill(paths, rows)
            self.twin.hidden(
                input_ids=torch.tensor([tree.tokens], device=self.device),
                position_ids=torch.tensor([tree.positions], device=self.device),
                attention_mask=tree.mask(self.cache.dtype, self.device),
                past_key_values=self.cache,
            )

    def _step(self, graphs: GraphedStep | None) -> None:
        """One token for every row."""
        steps = [len(row.tokens) for row in self.rows]
        lengths = [len(self.prompts[row.prompt].tokens) - 1 + n for row, n in zip(self.rows, steps, strict=True)]
        last = [row.tokens[-1] if row.tokens else self.prompts[row.prompt].tokens[-1] for row in self.rows]
        self.cache.reserve(max(lengths) + 1)
        uniforms_R = self.uniforms[[row.prompt for row in self.rows], steps]
        inputs = torch.tensor(last), torch.tensor(lengths), uniforms_R
        rows = len(self.rows)
        if graphs is None:
            # Rows that pad are at position 0 of the cache's rows behind R, which are free.
            padding = min(-rows % SIMILAR_ROWS, self.capacity - rows)
            made = self._next(*(F.pad(x, (0, padding)).to(self.device) for x in inputs))
        else:
            made = graphs(*inputs, self.cache.capacity)
        self._append(*(x[:rows] for x in made))

    def _next(self, last_R: Tensor, positions_R: Tensor, uniforms_R: Tensor) -> tuple[Tensor, Tensor]:
        """The token after each row's last one, and its log-prob."""
        mask = self.cache.step(positions_R)
        hidden = self.twin.hidden(
            input_ids=last_R[:, None],
            position_ids=positions_R[:, None],
            attention_mask=mask,
            past_key_values=self.cache,
        )
        return draw(self.twin.logits(hidden[:, 0]), uniforms_R, self.sampling)

    def _append(self, tokens_R: Tensor, logprobs_R: Tensor) -> None:
        for row, token, logprob in zip(self.rows, tokens_R.tolist(), logprobs_R.tolist(), strict=True):
            row.tokens.append(token)
            row.logprobs.append(logprob)
            stopped = token in self.stop_ids
            if stopped or len(row.tokens) == self.sampling.max_new_tokens:
                row.ended = True
                self._finish(row, "stop" if stopped else "length")

    def _finish(self, row: _Row, reason: str) -> None:
        text: Any = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        generation = Generation(tuple(row.tokens), tuple(row.logprobs), text, reason)
        self.results[row.prompt] = generation
        if self.on_finish is not None:
            self.on_finish(row.prompt, generation)
