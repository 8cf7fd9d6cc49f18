"""The transformers engine against transformers itself: same tokens, same log-probabilities, whatever the batch."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from p2o.config.schema import FullTuning, HfRollout, LoraTuning, ModelConfig, RandomModel, TuningConfig
from p2o.policy.builders import byte_tokenizer
from p2o.policy.model import Policy, load_policy
from p2o.rollout.engine import StalePolicyError
from p2o.rollout.hf.decoding_model import _Apart, _Joint, _weights
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.rollout.hf.token_sampling import uniforms
from p2o.types import Generation, Prompt, SamplingParams

LENGTHS = (5, 1, 40, 17, 17, 2, 33, 40)
ROUNDING = 1e-4
"""Of a probability in float32, by whatever kernels."""
BOTH = pytest.mark.parametrize("tuning", [LoraTuning(r=4), FullTuning()], ids=["lora", "full"])


def load(tmp_path: Path, tuning: TuningConfig, architecture: str = "llama", dtype: str = "float32") -> Policy:
    """A tiny policy, moved away from its start by enough to make the distributions uneven."""
    if architecture == "qwen2":
        config = Qwen2Config(
            vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, eos_token_id=258, bos_token_id=None,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = Qwen2ForCausalLM(config).to(getattr(torch, dtype)).eval()
        policy = Policy(module, byte_tokenizer(), getattr(torch, dtype), ModelConfig(path="none"))
    else:
        model = RandomModel(path=str(tmp_path / architecture), architecture=architecture, dtype=dtype)
        policy = load_policy(model, tuning, seed=0)
    sharpen(policy)
    return policy


@torch.no_grad()
def sharpen(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(1)
    policy.causal_lm.get_input_embeddings().weight.mul_(40)
    train(policy, generator)


@torch.no_grad()
def train(policy: Policy, generator: torch.Generator) -> None:
    """Stands for optimizer steps: every trained weight moves, in place."""
    for p in policy.trainable.values():
        p.add_(0.1 * torch.randn(p.shape, generator=generator).to(p.dtype))


def prompts(seed: int = 0) -> list[Prompt]:
    generator = torch.Generator().manual_seed(seed)
    made = [tuple(torch.randint(0, 250, (n,), generator=generator).tolist()) for n in LENGTHS]
    made[3] = made[4]  # a group of two
    made[6] = made[2][:20] + made[6][20:]  # and two that begin alike
    return [Prompt(tokens, seed=100 + i) for i, tokens in enumerate(made)]


def engine(policy: Policy, max_rows: int = 96, stop_ids: frozenset[int] | None = None) -> HfEngine:
    it = HfEngine(policy, HfRollout(max_rows=max_rows))
    if stop_ids is not None:
        it.stop_ids = stop_ids
    it.sync(0)
    return it


@torch.no_grad()
def full_logprobs(policy: Policy, prompt: Prompt, made: Generation, temperature: float) -> Tensor:
    """Of the generated tokens, by one forward pass of the policy's own module over prompt and completion."""
    ids_1T = torch.tensor([prompt.tokens + made.tokens])
    with policy.autocast():
        logits_TV = policy.module(input_ids=ids_1T).logits[0].float() / temperature
    return logits_TV.log_softmax(-1)[len(prompt.tokens) - 1 : -1].gather(1, torch.tensor(made.tokens)[:, None])[:, 0]


def assert_same(policy: Policy, prompt: Prompt, made: Generation, other: Generation, sampling: SamplingParams) -> None:
    """The same tokens and log-probs; they may part only where rounding decides, and whatever follows may differ then.

    Rounding decides between two tokens that are about equally good (greedy), or where the uniform number lies about on
    the boundary of the two tokens' shares of the distribution. Kernels differ in rounding, so where that is depends on
    the processor, the threads and the shape of the batch.
    """
    same = next((i for i, (a, b) in enumerate(zip(made.tokens, other.tokens, strict=False)) if a != b), None)
    if same is None:
        assert len(made.tokens) == len(other.tokens)
        same = len(made.tokens)
    else:
        low, high = sorted((made.tokens[same], other.tokens[same]))
        shares_V = next_token(policy, prompt, made.tokens[:same], sampling.temperature or 1.0)
        if sampling.temperature == 0.0:
            assert float((shares_V[low] - shares_V[high]).abs()) < ROUNDING
        else:
            u = float(uniforms([prompt.seed], sampling.max_new_tokens)[0, same])
            assert abs(float(shares_V[: low + 1].sum()) - u) < ROUNDING
            assert abs(float(shares_V[:high].sum()) - u) < ROUNDING
    ours, theirs = (torch.tensor(g.logprobs[:same]) for g in (made, other))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def assert_all_same(
    policy: Policy, asked: list[Prompt], made: list[Generation], others: list[Generation], sampling: SamplingParams
) -> None:
    for prompt, one, other in zip(asked, made, others, strict=True):
        assert_same(policy, prompt, one, other, sampling)
    assert any(one.tokens == other.tokens for one, other in zip(made, others, strict=True)), "most are never in doubt"


@torch.no_grad()
def next_token(policy: Policy, prompt: Prompt, tokens: tuple[int, ...], temperature: float) -> Tensor:
    """The distribution of the token that follows, by the policy's own module, in float64."""
    logits_V = policy.module(input_ids=torch.tensor([prompt.tokens + tokens])).logits[0, -1]
    return (logits_V.double() / temperature).softmax(-1)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@BOTH
def test_greedy_equals_generate_token_for_token(tmp_path: Path, architecture: str, tuning: TuningConfig) -> None:
    policy = load(tmp_path, tuning, architecture)
    greedy = SamplingParams(0.0, 20)
    expected = []
    for prompt in prompts():
        out = policy.module.generate(
            input_ids=torch.tensor([prompt.tokens]),
            attention_mask=torch.ones(1, len(prompt.tokens), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
        )
        tokens = tuple(out[0, len(prompt.tokens) :].tolist())
        known = Generation(tokens, (), "", "length")
        expected.append(replace(known, logprobs=tuple(full_logprobs(policy, prompt, known, 1.0).tolist())))
    made = engine(policy).generate(prompts(), greedy, version=0)
    assert_all_same(policy, prompts(), made, expected, greedy)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
@BOTH
def test_logprobs_equal_a_full_forward_pass(tmp_path: Path, tuning: TuningConfig, temperature: float) -> None:
    policy = load(tmp_path, tuning)
    made = engine(policy).generate(prompts(), SamplingParams(temperature, 40), version=0)
    for prompt, generation in zip(prompts(), made, strict=True):
        expected = full_logprobs(policy, prompt, generation, temperature or 1.0)
        torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=1e-4, rtol=0)


@BOTH
def test_bfloat16_rounds_no_more_than_the_plain_forward_pass(tmp_path: Path, tuning: TuningConfig) -> None:
    """The yardstick is the same model in float32."""
    policy = load(tmp_path, tuning, dtype="bfloat16")
    exact = Policy(copy.deepcopy(policy.module).float(), policy.tokenizer, torch.float32, policy.model_config)
    ours, plain = [], []
    for prompt, made in zip(prompts(), engine(policy).generate(prompts(), SamplingParams(1.0, 40), version=0), strict=True):  # fmt: skip  # noqa: E501
        truth_T = full_logprobs(exact, prompt, made, 1.0)
        ours.append(torch.tensor(made.logprobs) - truth_T)
        plain.append(full_logprobs(policy, prompt, made, 1.0) - truth_T)
    assert torch.cat(ours).pow(2).mean().sqrt() < 1.3 * torch.cat(plain).pow(2).mean().sqrt()


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize(
    "tuning", [LoraTuning(r=4), LoraTuning(r=4, target_modules=["q_proj", "v_proj"]), FullTuning()]
)
def test_products_apart_are_products_at_once(tmp_path: Path, tuning: TuningConfig, adapter: bool) -> None:
    """What a GPU does with frozen weights, where they are, is what the CPU does with a copy of them."""
    policy = load(tmp_path, tuning, "qwen2" if isinstance(tuning, FullTuning) else "llama")  # qwen2 has biases
    attention = policy.causal_lm.model.layers[0].self_attn
    parts = [_weights(layer) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
    x = torch.randn(3, 2, attention.q_proj.in_features, generator=torch.Generator().manual_seed(0))
    joint, apart = _Joint(parts, torch.float32), _Apart(parts, torch.float32)
    joint.adapter = apart.adapter = adapter
    with torch.no_grad():
        for one, other in zip(joint(x), apart(x), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_an_adapter_with_a_bias_is_refused(tmp_path: Path) -> None:
    """Its products would leave the bias out."""
    policy = load(tmp_path, LoraTuning(r=4))
    policy.causal_lm.model.layers[1].mlp.up_proj.lora_bias["default"] = True
    with pytest.raises(TypeError, match="without a bias"):
        HfEngine(policy, HfRollout()).sync(0)


def test_results_depend_neither_on_order_nor_on_the_batch(tmp_path: Path) -> None:
    """Three rows at a time means queueing, refilling and closing gaps; the tokens stay the same."""
    policy = load(tmp_path, LoraTuning(r=4))
    some_end = frozenset(range(0, 259, 12))
    sampling = SamplingParams(1.0, 45)
    together = engine(policy, stop_ids=some_end).generate(prompts(), sampling, version=0)
    assert len({len(g.tokens) for g in together}) > 3
    few_rows = engine(policy, max_rows=3, stop_ids=some_end).generate(prompts(), sampling, version=0)
    alone = [engine(policy, stop_ids=some_end).generate([p], sampling, version=0)[0] for p in prompts()]
    reversed_ = engine(policy, stop_ids=some_end).generate(prompts()[::-1], sampling, version=0)[::-1]
    for other in (few_rows, alone, reversed_):
        assert_all_same(policy, prompts(), other, together, sampling)


def test_rows_of_one_group_differ_by_seed_alone(tmp_path: Path) -> None:
    policy = load(tmp_path, LoraTuning(r=4))
    tokens = prompts()[2].tokens
    asked, sampling = [Prompt(tokens, seed) for seed in (1, 2, 1)], SamplingParams(1.0, 20)
    made = engine(policy).generate(asked, sampling, version=0)
    assert_same(policy, asked[0], made[0], made[2], sampling)
    assert made[0].tokens != made[1].tokens


def test_every_end_token_ends_and_is_kept(tmp_path: Path) -> None:
    policy = load(tmp_path, LoraTuning(r=4))
    policy.causal_lm.generation_config.eos_token_id = [30, 31]
    it = HfEngine(policy, HfRollout())
    assert it.stop_ids == {30, 31, policy.tokenizer.eos_token_id}
    it.stop_ids |= set(range(60, 90))
    it.sync(0)
    made = it.generate(prompts(), SamplingParams(1.0, 12), version=0)
    for generation in made:
        ends = [i for i, token in enumerate(generation.tokens) if token in it.stop_ids]
        if generation.finish_reason == "stop":
            assert ends == [len(generation.tokens) - 1]
        else:
            assert (generation.finish_reason, ends, len(generation.tokens)) == ("length", [], 12)
        assert len(generation.logprobs) == len(generation.tokens)
        assert generation.text == policy.tokenizer.decode(generation.tokens, skip_special_tokens=True)
    assert {g.finish_reason for g in made} == {"stop", "length"}


def test_finished_sequences_are_reported_once_and_while_others_run(tmp_path: Path) -> None:
    policy = load(tmp_path, LoraTuning(r=4))
    heard: list[tuple[int, Generation]] = []
    it = engine(policy, max_rows=3, stop_ids=frozenset(range(0, 259, 12)))
    made = it.generate(prompts(), SamplingParams(1.0, 30), version=0, on_finish=lambda i, g: heard.append((i, g)))
    assert dict(heard) == dict(enumerate(made))
    assert len(heard) == len(made)
    assert [i for i, _ in heard] != sorted(i for i, _ in heard)


def test_no_prompts_no_generations(tmp_path: Path) -> None:
    assert engine(load(tmp_path, LoraTuning(r=4))).generate([], SamplingParams(1.0, 5), version=0) == []


@BOTH
def test_another_version_than_the_engines_is_refused(tmp_path: Path, tuning: TuningConfig) -> None:
    policy = load(tmp_path, tuning)
    it = HfEngine(policy, HfRollout())
    sampling = SamplingParams(0.0, 30)
    with pytest.raises(StalePolicyError, match="call sync"):
        it.generate(prompts(), sampling, version=0)
    it.sync(4)
    assert it.version == 4
    with pytest.raises(StalePolicyError, match="holds policy version 4, not 5"):
        it.generate(prompts(), sampling, version=5)
    before = it.generate(prompts(), sampling, version=4)
    train(policy, torch.Generator().manual_seed(2))
    assert it.generate(prompts(), sampling, version=4) == before, "an update reached the engine without a sync"
    it.sync(5)
    after = it.generate(prompts(), sampling, version=5)
    assert after != before
    assert full_logprobs(policy, prompts()[0], after[0], 1.0).tolist() == pytest.approx(after[0].logprobs, abs=1e-4)
    it.sleep()
    with pytest.raises(StalePolicyError, match="call sync"):
        it.generate(prompts(), sampling, version=5)
    it.sync(5)
    assert it.generate(prompts(), sampling, version=5) == after


@BOTH
def test_the_reference_is_the_model_before_training(tmp_path: Path, tuning: TuningConfig) -> None:
    model = RandomModel(path=str(tmp_path / "tiny"), dtype="float32")
    policy = load_policy(model, tuning, seed=0)
    sampling = SamplingParams(1.0, 30)
    start = engine(policy).generate(prompts(), sampling, version=0)
    train(policy, torch.Generator().manual_seed(0))
    it = engine(policy)
    with policy.reference():
        assert_all_same(policy, prompts(), it.generate(prompts(), sampling, version=0, reference=True), start, sampling)
    trained = it.generate(prompts(), sampling, version=0)
    assert [g.tokens for g in trained] != [g.tokens for g in start]
    for prompt, generation in zip(prompts(), start, strict=True):
        with policy.reference():
            expected = full_logprobs(policy, prompt, generation, 1.0)
        torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=1e-4, rtol=0)


def test_the_policys_own_module_is_left_as_it_was(tmp_path: Path) -> None:
    policy = load(tmp_path, LoraTuning(r=4))
    modules = {name: type(m) for name, m in policy.module.named_modules()}
    attention = policy.causal_lm.config._attn_implementation
    it = engine(policy)
    it.generate(prompts(), SamplingParams(1.0, 5), version=0)
    it.close()
    assert {name: type(m) for name, m in policy.module.named_modules()} == modules
    assert policy.causal_lm.config._attn_implementation == attention
    assert all(p.requires_grad for p in policy.trainable.values())
    loss = policy.module(input_ids=torch.tensor([prompts()[0].tokens])).logits.sum()
    loss.backward()
    assert all(isinstance(p.grad, Tensor) for p in policy.trainable.values())


def test_layers_of_one_input_are_one_product(tmp_path: Path) -> None:
    policy = load(tmp_path, LoraTuning(r=4))
    it = engine(policy)
    assert it._twin is not None
    sizes = [joint.sizes for joint in it._twin._joints]
    layers = policy.causal_lm.config.num_hidden_layers
    assert sizes == [[32, 16, 16], [32], [64, 64], [32]] * layers
    assert not any(isinstance(m, nn.Linear) for m in it._twin._backbone.modules())


def test_more_tokens_than_the_model_can_attend_to_are_refused(tmp_path: Path) -> None:
    it = engine(load(tmp_path, LoraTuning(r=4)))
    with pytest.raises(ValueError, match="40 prompt tokens and 4090 new ones exceed the 4096"):
        it.generate(prompts(), SamplingParams(1.0, 4090), version=0)
