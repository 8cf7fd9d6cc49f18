"""The policy: a causal language model whose trained weights are float32 and whose arithmetic is ``model.dtype``.

LoRA keeps the base frozen in ``model.dtype`` and trains a float32 adapter; full tuning trains every weight in float32.
Either way the matrix products run in ``model.dtype`` under autocast.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from p2o.config.schema import FullTuning, LoraTuning, ModelConfig, TuningConfig
from p2o.faults import fault_point
from p2o.policy.attention import NAME as SEGMENT_ATTENTION
from p2o.policy.attention import Block, build_blocks
from p2o.policy.builders import ModelError, load_causal_lm, load_tokenizer, staged_folder
from p2o.policy.head import token_logprobs
from p2o.policy.layout import EMPTY, MicroBatch, Sample, Segment, micro_batches
from p2o.policy.lean import keep_less
from p2o.policy.lora import fuse_adapter, with_adapter
from p2o.policy.memory import keep_fewer_kernels
from p2o.policy.sharding import Root, like, shard, whole_state
from p2o.ranks import ALONE
from p2o.types import derive_seed

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Policy:
    """A model, its tokenizer and its trained tensors. Build it with :func:`load_policy`.

    Shapes: B rows, T tokens, D hidden size, V vocabulary.
    """

    def __init__(
        self,
        module: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        model_config: ModelConfig,
    ) -> None:
        self.tokenizer = tokenizer
        self.dtype = dtype
        self.model_config = model_config
        self._live = module
        self._frozen: PreTrainedModel | None = None
        self._module = module
        self.ranks = ALONE
        """Who trains it together; each holds all of the weights, or with :meth:`shard` a part."""
        self._root: Root | None = None
        self._no_mask = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
        self.trainable: dict[str, nn.Parameter] = {n: p for n, p in module.named_parameters() if p.requires_grad}

    @property
    def module(self) -> PreTrainedModel | PeftModel:
        """The model; inside :meth:`reference` the one that computes π_init."""
        return self._module

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model: for a LoRA policy the one that carries the adapter's layers."""
        return cast(
            PreTrainedModel, self.module.get_base_model() if isinstance(self.module, PeftModel) else self.module
        )

    @property
    def lora(self) -> bool:
        return isinstance(self._live, PeftModel)

    @property
    def sharded(self) -> bool:
        """Whether the weights are split over the ranks."""
        return self._root is not None

    def shard(self, device: str) -> None:
        """Split the weights over the ranks; see :mod:`p2o.policy.sharding`."""
        self._root = shard(self, device)
        self.trainable = {n: p for n, p in self._live.named_parameters() if p.requires_grad}

    @property
    def attends_by_segments(self) -> bool:
        """Whether :meth:`hidden_states` takes blocks of segments, so that any layout can be trained on."""
        return self.causal_lm.config._attn_implementation == SEGMENT_ATTENTION

    def check_layout(self, layout: str) -> None:
        """Raise ``ValueError`` if the model cannot be trained in this ``policy.layout``."""
        if layout != "padded" and not self.attends_by_segments:
            raise ValueError(
                f"policy.layout={layout} needs model.attn_implementation=sdpa "
                f"(it is {self.model_config.attn_implementation}): use that, or policy.layout=padded"
            )

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)  # load_tokenizer makes sure that there is one

    @property
    def device(self) -> torch.device:
        return next(self._live.parameters()).device

    def autocast(self) -> AbstractContextManager[None]:
        """The arithmetic of every forward pass of this policy."""
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def hidden_states(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | Sequence[Block] | None
    ) -> Tensor:
        """Last hidden states [B, T, D], before the head.

        ``attention_mask`` is None (all rows full and causal), [B, T] (1 = token, 0 = padding, causal), a boolean
        [B, 1, T, T] that says which key (last axis) each query may see, or blocks of segments
        (:func:`p2o.policy.attention.build_blocks`), which need ``model.attn_implementation=sdpa``.
        """
        lm = self.causal_lm
        arguments: dict[str, Any] = {"attention_mask": attention_mask}
        if attention_mask is not None and not isinstance(attention_mask, Tensor):
            # transformers makes no mask of its own if it is given a whole one; this one fits only the attention that
            # ignores it.
            arguments = {"attention_mask": self._no_mask, "blocks": attention_mask}
        if isinstance(arguments["attention_mask"], Tensor) and arguments["attention_mask"].dim() == 4:
            _check_full_attention(lm)
        with self.autocast():
            return getattr(lm, lm.base_model_prefix)(
                input_ids=input_ids, position_ids=position_ids, use_cache=False, **arguments
            ).last_hidden_state

    def micro_batches(self, samples: Sequence[Sample], layout: str, tokens: int) -> list[MicroBatch]:
        """:func:`p2o.policy.layout.micro_batches`, at least one if there are several ranks. Those that hold parts of
        the weights make every pass together, so each gets as many as the one that has the most.
        """
        batches = micro_batches(samples, layout, tokens, pad_id=self.pad_id)
        passes = max(self.ranks.gather(lambda: len(batches))) if self.sharded else self.ranks.size > 1
        return batches + [EMPTY] * (passes - len(batches))

    def logprobs(self, batch: MicroBatch, *, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        """Log-probs of a micro-batch's N targets at ``temperature``, and the entropies (without gradient), [N] each.

        ``chunk`` tokens go through the head at a time.
        """
        if self._root is None:
            return self._logprobs(batch, temperature, chunk)
        return self._root(lambda: self._logprobs(batch, temperature, chunk))

    def _logprobs(self, batch: MicroBatch, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
        if self.attends_by_segments:
            mask: Any = build_blocks(batch.segments, batch.input_ids.numel(), self.device)
        else:
            mask = batch.padding_mask.to(self.device)
        hidden_BTD = self.hidden_states(batch.input_ids.to(self.device), batch.position_ids.to(self.device), mask)
        weight, bias = self.head()
        return token_logprobs(
            hidden_BTD.flatten(0, 1)[batch.predictors.to(self.device)],
            weight,
            bias,
            batch.targets.to(self.device),
            temperature=temperature,
            chunk=chunk,
            dtype=self.dtype,
        )

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V, D] and bias [V] (or None) that turn a hidden state into logits."""
        layer = self.causal_lm.get_output_embeddings()
        return layer.weight, getattr(layer, "bias", None)

    @contextmanager
    def training(self, seed: int) -> Iterator[None]:
        """Dropout on, drawn from ``seed`` and the rank, not from the state that a global generator happens to be in."""
        rank = self.ranks.rank
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed("dropout", seed, *([rank] if rank else [])))
            self.module.train()
            try:
                yield
            finally:
                self.module.eval()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside the block the policy computes π_init, the model before any training.

        With LoRA that is the same model with its adapter off. With full tuning it is a frozen copy in ``model.dtype``,
        loaded from ``model.path`` at the first use.
        """
        if isinstance(self._live, PeftModel):
            with self._live.disable_adapter():
                yield
            return
        if self._frozen is None:
            frozen = load_causal_lm(self.model_config, self.dtype).requires_grad_(False)
            self._frozen = cast(PreTrainedModel, nn.Module.to(frozen, self.device))
        self._module = self._frozen
        try:
            yield
        finally:
            self._module = self._live

    def state_dict(self) -> dict[str, Tensor]:
        """The trained tensors (float32, detached, not copied, split over the ranks as they are) by name."""
        return {name: p.detach() for name, p in self.trainable.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over trained tensors; names and shapes must be exactly those of :meth:`state_dict`."""
        if state.keys() != self.trainable.keys():
            odd = sorted(state.keys() ^ self.trainable.keys())
            raise ModelError(
                f"the saved weights are those of another model or tuning: {len(odd)} names differ, e.g. {odd[0]}"
            )
        for name, p in self.trainable.items():
            if state[name].shape != p.shape:
                raise ModelError(
                    f"saved weight {name} has shape {tuple(state[name].shape)}, the model {tuple(p.shape)}"
                )
            p.copy_(like(state[name], p))

    def save(self, folder: Path, *, write: bool = True) -> None:
        """Write the adapter, or the full model in ``model.dtype``, with its tokenizer and chat template.

        The folder is loadable by peft or transformers and takes the place of an older one at once. Of ranks one has
        ``write``; the others take part in gathering the weights.
        """
        state = (
            whole_state({**self._live.state_dict(), **dict(self._live.named_parameters())}, keep=write)
            if (self.sharded)
            else self._live.state_dict()
        )
        if not write:
            return
        fault_point("before the export")
        with staged_folder(Path(folder)) as staged:
            if isinstance(self._live, PeftModel):
                self._live.save_pretrained(str(staged), state_dict=state)
            else:
                state = {n: t.to(self.dtype) for n, t in state.items()}
                self._live.save_pretrained(staged, state_dict=state)
                _set_saved_dtype(staged, self.dtype)
            fault_point("half exported")
            self.tokenizer.save_pretrained(staged)
        fault_point("after the export")


def load_policy(model: ModelConfig, tuning: TuningConfig, *, seed: int, fused_lora: bool = True) -> Policy:
    """Load ``model`` and make it trainable as ``tuning`` says; ``seed`` draws the adapter's first weights.

    ``fused_lora`` is ``policy.fused_lora``.

    Raises :class:`ModelError` when the model cannot be loaded, a target module does not exist, or the model's logits
    are not its hidden states times its head (the chunked log-probs rely on that).
    """
    if model.dtype not in DTYPES:
        raise ModelError(f"model.dtype={model.dtype}: choose one of {', '.join(DTYPES)}")
    keep_fewer_kernels()
    dtype = DTYPES[model.dtype]
    if not isinstance(tuning, LoraTuning | FullTuning):
        raise ModelError(f"tuning.kind={tuning.kind}: choose lora or full")
    tokenizer = load_tokenizer(model)
    lm = load_causal_lm(model, dtype if isinstance(tuning, LoraTuning) else torch.float32)
    if model.attn_implementation == "sdpa":
        lm.set_attn_implementation(SEGMENT_ATTENTION)
    if model.lean_layers:
        keep_less(lm)
    if model.gradient_checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    module: PreTrainedModel | PeftModel = lm
    if isinstance(tuning, LoraTuning):
        module = with_adapter(lm, model, tuning, seed)
        if fused_lora:
            fuse_adapter(module)
    embedding: Any = lm.get_input_embeddings()
    if model.sparse_embedding and embedding.weight is lm.get_output_embeddings().weight:
        # If it is trained, the head's gradient is dense and comes first: the rows of the tokens that occurred are
        # added to it, without a second table as large as the vocabulary.
        embedding.sparse = True
    policy = Policy(module, tokenizer, dtype, model)
    check_head(policy)
    if policy.attends_by_segments:
        _check_segments(policy)
    return policy


@torch.no_grad()
def check_head(policy: Policy) -> None:
    """Some architectures scale or cap their logits after the head; training them here would be silently wrong."""
    ids_BT = torch.arange(1, 9, device=policy.device)[None] % policy.causal_lm.config.vocab_size
    with policy.autocast():
        logits_BTV = policy.causal_lm(input_ids=ids_BT, use_cache=False).logits.float()
        hidden_BTD = policy.hidden_states(ids_BT, torch.arange(8, device=policy.device)[None], None)
        weight, bias = policy.head()
        own_BTV = nn.functional.linear(hidden_BTD, weight, bias).float()
    if not torch.allclose(own_BTV, logits_BTV, rtol=0.05, atol=0.05 * float(logits_BTV.abs().max())):
        raise ModelError(
            f"{type(policy.causal_lm).__name__} changes its logits after the output layer (scaling or soft cap), "
            "which the log-prob head does not reproduce: choose another model.path"
        )


@torch.no_grad()
def _check_segments(policy: Policy) -> None:
    """The blocks must reach the model's attention: one branch must not affect the other."""
    ids_BT = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 8, 9]]) % policy.causal_lm.config.vocab_size
    positions_BT = torch.tensor([[0, 1, 2, 3, 4, 3, 4]], device=policy.device)
    blocks = build_blocks((Segment(0, 3), Segment(3, 2, 0, 3), Segment(5, 2, 0, 3)), 7, policy.device)
    try:
        one, other = (policy.hidden_states(row[None], positions_BT, blocks) for row in ids_BT.to(policy.device))
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"{type(policy.causal_lm).__name__} does not pass its keyword arguments to its attention: "
            f"set model.attn_implementation=eager policy.layout=padded [{error}]"
        ) from error
    if not torch.equal(one[:, :5], other[:, :5]):
        raise ModelError(
            f"{type(policy.causal_lm).__name__} mixes tokens outside of its attention: "
            "set model.attn_implementation=eager policy.layout=padded"
        )


def _check_full_attention(lm: PreTrainedModel) -> None:
    kinds: set[Any] = set(getattr(lm.config, "layer_types", None) or [])
    if kinds - {"full_attention"}:
        raise ModelError(
            f"{type(lm).__name__} has layers that do not attend to everything ({', '.join(sorted(kinds))}): "
            "set policy.layout=padded"
        )


def _set_saved_dtype(folder: Path, dtype: torch.dtype) -> None:
    """transformers records the live module's float32; a loader should go by the saved tensors."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    file.write_text(json.dumps(config, indent=2) + "\n")
