"""A GRPO step: 8 questions × 6 rollouts of at most 48 tokens, generation and update, against TRL's GRPOTrainer.

Both sides answer the same questions under the same chat template with the same model at temperature 1, and take one
AdamW step on all 48 rollouts. Rewards alternate within a group, so that no group is without a signal: a dead group
would cost us nothing and TRL a full pass.
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import Contestant, Row
from benchmarks.stopwatch import Stopwatch
from benchmarks.subject import configure, device, load, model_folder, problems, renderer

QUESTIONS = 8
ROLLOUTS = 6
NEW_TOKENS = 48
TRL_BATCHES = (48, 12)
"""Rollouts a forward and backward pass of TRL: one pass, or passes that need less memory."""


def ours(watch: Stopwatch, tuning: str) -> None:
    """Rollouts, update and the engine's taking over of the new weights."""
    from p2o.algorithm.policy_step import Objective, update
    from p2o.policy.optimizer import adamw
    from p2o.rollout.hf.hf_engine import HfEngine
    from p2o.types import Grade, Group, Outcome, Prompt, Rollout, SamplingParams, derive_seed

    config = configure(f"tuning={tuning}")
    policy = load(config)
    prompts = [renderer(config, policy).render(p.question) for p in problems(QUESTIONS)]
    engine = HfEngine(policy, config.rollout)  # type: ignore[arg-type]
    optimizer = adamw(policy, config.tuning.learning_rate, config.policy)
    engine.sync(0)

    def rollout(i: int, prompt: Prompt, generation: Any, version: int) -> Rollout:
        reward = float(i % 2)
        grade = Grade(Outcome.CORRECT if reward else Outcome.WRONG, reward)
        made = generation.tokens, generation.logprobs, generation.text, generation.finish_reason
        return Rollout(str(i // ROLLOUTS), "plain", i % ROLLOUTS, prompt.tokens, *made, grade, version)

    objective = Objective(config.policy, config.distillation, 1.0, NEW_TOKENS)
    step = 0
    while True:
        watch.begin()
        asked = [Prompt(tokens, derive_seed(step, q, k)) for q, tokens in enumerate(prompts) for k in range(ROLLOUTS)]
        made = engine.generate(asked, SamplingParams(1.0, NEW_TOKENS), version=step)
        rollouts = [rollout(i, prompt, g, step) for i, (prompt, g) in enumerate(zip(asked, made, strict=True))]
        groups = [
            Group(problem, prompts[q], tuple(rollouts[q * ROLLOUTS : (q + 1) * ROLLOUTS]))
            for q, problem in enumerate(problems(QUESTIONS))
        ]
        engine.sleep()
        metrics = update(policy, optimizer, None, [objective.advantages(g) for g in groups], objective, seed=step)
        step += 1
        engine.sync(step)
        assert (metrics["trained_samples"], metrics["steps"]) == (QUESTIONS * ROLLOUTS, 1)
        watch.end(tokens=sum(len(g.tokens) for g in made))


def trl(watch: Stopwatch, tuning: str, batch: int, weights: str) -> None:
    """GRPOTrainer's own loop, a step a measurement. ``batch`` rollouts a forward pass, ``weights`` in this dtype."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    config = configure(f"tuning={tuning}")
    asked = [
        {"prompt": [{"role": "user", "content": config.data.prompt.replace("{question}", p.question)}]}
        for p in problems(QUESTIONS)
    ]
    tokens = 0

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        nonlocal tokens
        tokens = sum(map(len, completion_ids))
        return [float(i % 2) for i in range(len(completion_ids))]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.end(tokens=tokens)

    folder = model_folder(config)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir="unused",
            model_init_kwargs={"dtype": getattr(torch, weights), "attn_implementation": "sdpa"},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=QUESTIONS * ROLLOUTS // batch,
            num_generations=ROLLOUTS,
            max_completion_length=NEW_TOKENS,
            temperature=1.0,
            top_k=0,
            beta=0.0,
            learning_rate=config.tuning.learning_rate,
            lr_scheduler_type="constant",
            max_steps=1000,
            bf16=True,
            gradient_checkpointing=False,
            use_cpu=device().type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(asked),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=lora if tuning == "lora" else None,
        callbacks=[Clock()],
    )
    trainer.train()


def _row(tuning: str, weights: str) -> Row:
    theirs = [
        Contestant(
            f"TRL GRPOTrainer, {batch} rollouts a pass",
            "benchmarks.grpo_step:trl",
            {"tuning": tuning, "batch": batch, "weights": weights},
        )
        for batch in TRL_BATCHES
    ]
    return Row(f"GRPO step, {tuning}", (Contestant("p2o", "benchmarks.grpo_step:ours", {"tuning": tuning}), *theirs))


ROWS = (_row("lora", "bfloat16"), _row("full", "float32"))
