"""The policy: what is trained, in which precision, and that saving and the reference model mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from p2o.config.schema import FullTuning, LoraTuning, ModelConfig, RandomModel, TuningConfig
from p2o.policy.builders import ModelError
from p2o.policy.head import token_logprobs
from p2o.policy.model import Policy, load_policy

BOTH = pytest.mark.parametrize("tuning", [LoraTuning(r=4), FullTuning()], ids=["lora", "full"])


def load(tmp_path: Path, tuning: TuningConfig, dtype: str = "float32", seed: int = 0) -> Policy:
    return load_policy(RandomModel(path=str(tmp_path / "tiny"), layers=2, dtype=dtype), tuning, seed=seed)


def logits(policy: Policy) -> Tensor:
    ids_BT = torch.arange(20, 32)[None]
    with torch.no_grad(), policy.autocast():
        hidden_BTD = policy.hidden_states(ids_BT, torch.arange(12)[None], None)
        weight, bias = policy.head()
        return torch.nn.functional.linear(hidden_BTD, weight, bias).float()


def disturb(policy: Policy) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable.values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trained_weights_and_their_gradients_are_float32(tmp_path: Path, tuning: TuningConfig, dtype: str) -> None:
    policy = load(tmp_path, tuning, dtype)
    assert policy.trainable
    hidden_BTD = policy.hidden_states(torch.arange(5, 17)[None], torch.arange(12)[None], None)
    assert hidden_BTD.shape == (1, 12, 32)
    disturb(policy)
    policy.hidden_states(torch.arange(5, 17)[None], torch.arange(12)[None], None).float().pow(2).sum().backward()
    for name, p in policy.trainable.items():
        assert p.dtype == torch.float32, name
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32, name
    frozen = [p for p in policy.module.parameters() if not p.requires_grad]
    assert bool(frozen) == isinstance(tuning, LoraTuning)
    assert all(p.dtype == policy.dtype and p.grad is None for p in frozen)


def test_a_tied_embedding_adds_its_rows_to_the_heads_gradient(tmp_path: Path) -> None:
    policy = load(tmp_path, FullTuning())
    embedding = policy.causal_lm.get_input_embeddings()
    ids_BT = torch.tensor([[20, 21, 20, 22, 22, 20]])

    def summed() -> tuple[Tensor, set[str]]:
        """The gradient of two micro-batches, and the operations that made it."""
        with torch.profiler.profile() as profile:
            for ids in (ids_BT, ids_BT + 1):
                hidden_BTD = policy.hidden_states(ids, torch.arange(6)[None], None)
                token_logprobs(hidden_BTD[0], *policy.head(), ids[0])[0].sum().backward()
        grad = embedding.weight.grad
        policy.module.zero_grad()
        return grad, {event.key for event in profile.key_averages()}

    own, operations = summed()
    embedding.sparse = False
    expected, others = summed()
    assert not own.is_sparse
    torch.testing.assert_close(own, expected)
    assert "aten::embedding_dense_backward" in others - operations


@BOTH
def test_hidden_states_and_head_are_the_models_logits(tmp_path: Path, tuning: TuningConfig) -> None:
    policy = load(tmp_path, tuning)
    disturb(policy)
    with torch.no_grad():
        expected = policy.causal_lm(input_ids=torch.arange(20, 32)[None]).logits
    torch.testing.assert_close(logits(policy), expected)


@BOTH
def test_reference_is_the_model_before_training(tmp_path: Path, tuning: TuningConfig) -> None:
    policy = load(tmp_path, tuning)
    initial = logits(policy)
    disturb(policy)
    trained = logits(policy)
    assert not torch.allclose(initial, trained, atol=1e-3)
    with policy.reference():
        torch.testing.assert_close(logits(policy), initial)
    torch.testing.assert_close(logits(policy), trained)


@BOTH
def test_state_round_trip_and_its_errors(tmp_path: Path, tuning: TuningConfig) -> None:
    policy = load(tmp_path, tuning)
    disturb(policy)
    other = load(tmp_path, tuning, seed=1)
    other.load_state_dict({k: v.clone() for k, v in policy.state_dict().items()})
    torch.testing.assert_close(logits(other), logits(policy), rtol=0, atol=0)
    state = policy.state_dict()
    name = next(iter(state))
    with pytest.raises(ModelError, match="names differ"):
        other.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(ModelError, match="shape"):
        other.load_state_dict({**state, name: torch.zeros(1)})


def test_adapter_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def weights(seed: int) -> Tensor:
        return torch.cat([p.flatten() for p in load(tmp_path, LoraTuning(), seed=seed).trainable.values()])

    before = torch.random.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_adapter_loads_with_peft(tmp_path: Path, dtype: str) -> None:
    policy = load(tmp_path, LoraTuning(r=4), dtype)
    disturb(policy)
    policy.save(tmp_path / "out")
    policy.save(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=policy.dtype)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        got = reloaded(input_ids=torch.arange(20, 32)[None]).logits.float()
    torch.testing.assert_close(got, logits(policy), rtol=0.02, atol=0.02 if dtype == "bfloat16" else 1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == policy.tokenizer.chat_template


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_full_model_loads_with_transformers_in_its_own_precision(tmp_path: Path, dtype: str) -> None:
    policy = load(tmp_path, FullTuning(), dtype)
    disturb(policy)
    policy.save(tmp_path / "out")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert reloaded.dtype == policy.dtype
    with torch.no_grad():
        got = reloaded(input_ids=torch.arange(20, 32)[None]).logits.float()
    torch.testing.assert_close(got, logits(policy), rtol=0.03, atol=0.03 if dtype == "bfloat16" else 1e-5)
    again = load_policy(ModelConfig(path=str(tmp_path / "out"), dtype=dtype), LoraTuning(), seed=0)
    assert again.tokenizer.chat_template == policy.tokenizer.chat_template


def test_target_modules_by_name(tmp_path: Path) -> None:
    policy = load(tmp_path, LoraTuning(target_modules=["q_proj", "v_proj"]))
    assert {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in policy.trainable} == {"q_proj", "v_proj"}
    with pytest.raises(ModelError, match=r"tuning\.target_modules=.*'q_porj'.*choose all-linear or some of down_proj"):
        load(tmp_path, LoraTuning(target_modules=["q_porj"]))
    with pytest.raises(ModelError, match="lm_head"):
        load(tmp_path, LoraTuning(target_modules=["lm_head"]))


def test_unusable_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.dtype=float16: choose one of bfloat16, float32"):
        load(tmp_path, LoraTuning(), dtype="float16")
    with pytest.raises(ModelError, match=r"tuning\.kind=prefix: choose lora or full"):
        load(tmp_path, TuningConfig(kind="prefix"))


def test_a_model_that_scales_its_logits_is_refused(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    load(tmp_path, LoraTuning())
    model = GraniteForCausalLM(
        GraniteConfig(
            vocab_size=259,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            logits_scaling=8.0,
        )
    )
    model.save_pretrained(tmp_path / "granite")
    AutoTokenizer.from_pretrained(tmp_path / "tiny").save_pretrained(tmp_path / "granite")
    with pytest.raises(ModelError, match="scaling or soft cap"):
        load_policy(ModelConfig(path=str(tmp_path / "granite")), LoraTuning(), seed=0)
