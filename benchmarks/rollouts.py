"""Rollouts: 16 questions × 6, 128 tokens each whether or not they would end earlier, at temperature 1.

transformers' ``generate`` works in bfloat16 with its dynamic cache, which was faster than the static one. vLLM's CPU
build takes part where ``--vllm-python`` names the interpreter of an environment that has it beside p2o.
"""

from __future__ import annotations

from benchmarks.harness import Contestant, Row
from benchmarks.stopwatch import Stopwatch
from benchmarks.subject import configure, device, load, model_folder, problems, renderer

QUESTIONS = 16
ROLLOUTS = 6
NEW_TOKENS = 128


def ours(watch: Stopwatch) -> None:
    from p2o.rollout.hf.hf_engine import HfEngine

    config = configure()
    policy = load(config)
    engine = HfEngine(policy, config.rollout)  # type: ignore[arg-type]
    engine.stop_ids = frozenset()
    engine.sync(0)
    _generate(watch, engine, [renderer(config, policy).render(p.question) for p in problems(QUESTIONS)])


def vllm(watch: Stopwatch) -> None:
    """vLLM as p2o drives it, its process started and warmed up before."""
    from tempfile import TemporaryDirectory

    from transformers import GenerationConfig

    import p2o.rollout.vllm
    from p2o.rollout.vllm import VllmEngine

    without_end = TemporaryDirectory()
    GenerationConfig().save_pretrained(without_end.name)  # the model's own names the tokens that end an answer
    config = configure("rollout=vllm", f"+rollout.engine_args.generation_config={without_end.name}")
    policy = load(config)
    p2o.rollout.vllm.stop_token_ids = lambda _: frozenset()  # no answer ends early
    engine = VllmEngine(policy, config.rollout)  # type: ignore[arg-type]
    engine.sync(0)
    _generate(watch, engine, [renderer(config, policy).render(p.question) for p in problems(QUESTIONS)])


def _generate(watch: Stopwatch, engine: object, prompts: list[tuple[int, ...]]) -> None:
    from p2o.types import Prompt, SamplingParams, derive_seed

    run = 0
    while True:
        watch.begin()
        asked = [Prompt(tokens, derive_seed(run, q, k)) for q, tokens in enumerate(prompts) for k in range(ROLLOUTS)]
        made = engine.generate(asked, SamplingParams(1.0, NEW_TOKENS), version=0)  # type: ignore[attr-defined]
        run += 1
        watch.end(tokens=sum(len(g.tokens) for g in made))


def transformers(watch: Stopwatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = configure()
    folder = model_folder(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device()).eval()
    model.generation_config.eos_token_id = None
    chats = [[{"role": "user", "content": p.question}] for p in problems(QUESTIONS) for _ in range(ROLLOUTS)]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    while True:
        watch.begin()
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(device())
        out = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=NEW_TOKENS,
            pad_token_id=tokenizer.eos_token_id,
        )
        watch.end(tokens=(out.shape[1] - inputs["input_ids"].shape[1]) * len(texts))


def rows(vllm_python: str | None) -> tuple[Row, ...]:
    contestants = [
        Contestant("p2o, rollout=hf", "benchmarks.rollouts:ours"),
        Contestant("transformers generate", "benchmarks.rollouts:transformers"),
    ]
    if vllm_python is not None:
        contestants.append(Contestant("vLLM (rollout=vllm)", "benchmarks.rollouts:vllm", python=vllm_python))
    return (Row("rollouts, 96 × 128 tokens", contestants, rate="tokens"),)
