"""Forward and backward of the policy loss on 48 rollouts, against the same loss through full logits.

Same model (LoRA), same samples, same micro-batches of at most 2,048 tokens. The rival is what a plain implementation
does: rows of similar length padded, the model's logits in float32, a log-softmax over the vocabulary. It is measured
with the logits of all positions and with those of the completions alone. Memory is what is added to the loaded model.
"""

from __future__ import annotations

import random

from benchmarks.harness import Contestant, Row
from benchmarks.stopwatch import Stopwatch
from benchmarks.subject import configure, device, load, problems, renderer

QUESTIONS = 8
ROLLOUTS = 6
LARGE_VOCABULARY = 152_064


def ours(watch: Stopwatch, vocabulary: int | None = None, checkpointing: bool = False) -> None:
    """The update without an optimizer's step, on whole groups."""
    from p2o.algorithm.policy_step import Objective, update

    config = configure(f"model.gradient_checkpointing={checkpointing}")
    policy = load(config)
    if vocabulary is not None:
        policy.causal_lm.resize_token_embeddings(vocabulary, mean_resizing=False).requires_grad_(False)
    groups = _groups(renderer(config, policy))

    objective = Objective(config.policy, config.distillation, 1.0, 48)

    class NoStep:
        def step(self) -> None:
            pass

        def zero_grad(self) -> None:
            for p in policy.trainable.values():
                p.grad = None

    while True:
        watch.begin()
        metrics = update(policy, NoStep(), None, [objective.advantages(g) for g in groups], objective, seed=0)
        watch.end(tokens=int(metrics["trained_tokens"]))


def full_logits(watch: Stopwatch, everywhere: bool, vocabulary: int | None = None) -> None:
    import torch

    from p2o.algorithm.policy_step import Objective
    from p2o.algorithm.training_set import training_sets

    config = configure()
    policy = load(config)
    if vocabulary is not None:
        policy.causal_lm.resize_token_embeddings(vocabulary, mean_resizing=False).requires_grad_(False)
    groups = _groups(renderer(config, policy))
    objective = Objective(config.policy, config.distillation, 1.0, 48)
    (training_set,) = training_sets([objective.advantages(g) for g in groups], 1, config.distillation, seed=0)
    total = sum(len(s.completion) for s in training_set.samples)
    order = sorted(range(len(training_set)), key=lambda i: len(training_set.samples[i].completion))
    rows = config.policy.micro_batch_tokens // max(len(s.prompt) + len(s.completion) for s in training_set.samples)
    while True:
        watch.begin()
        for start in range(0, len(order), rows):
            chosen = order[start : start + rows]
            samples = [training_set.samples[i] for i in chosen]
            prompt = max(len(s.prompt) for s in samples)
            completion = max(len(s.completion) for s in samples)
            ids = torch.zeros(len(samples), prompt + completion, dtype=torch.long)
            mask = torch.zeros_like(ids)
            scored = torch.zeros(len(samples), completion, dtype=torch.bool)
            for row, sample in enumerate(samples):  # prompts end and completions begin in the same column
                here = slice(prompt - len(sample.prompt), prompt + len(sample.completion))
                ids[row, here] = torch.tensor(sample.prompt + sample.completion)
                mask[row, here] = 1
                scored[row, : len(sample.completion)] = True
            ids, mask, scored = (t.to(device()) for t in (ids, mask, scored))
            keep = 0 if everywhere else completion + 1
            with policy.autocast():
                logits = policy.module(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                    use_cache=False,
                    logits_to_keep=keep,
                ).logits
            logprobs = logits.float().log_softmax(-1)[:, -completion - 1 : -1]
            logprobs = logprobs.gather(-1, ids[:, -completion:, None])[..., 0]
            ratio = (logprobs - logprobs.detach()).exp()
            advantages = training_set.advantages[chosen, None].to(device())
            loss = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)[scored].sum() / total
            loss.backward()
            del logits, logprobs, ratio, loss
        for p in policy.trainable.values():
            p.grad = None
        watch.end(tokens=total)


def _groups(render: object) -> list:
    """Groups of answers of 8 to 48 tokens of text about nothing, as the default job's are long."""
    from p2o.types import Grade, Group, Outcome, Rollout

    draw = random.Random(0)
    groups = []
    for problem in problems(QUESTIONS):
        prompt = render.render(problem.question)  # type: ignore[attr-defined]
        rollouts = []
        for k in range(ROLLOUTS):
            tokens = tuple(draw.randrange(1000, 40000) for _ in range(draw.randint(8, 48)))
            grade = Grade(Outcome.CORRECT if k % 2 else Outcome.WRONG, float(k % 2))
            logprobs = (-10.0,) * len(tokens)
            rollouts.append(Rollout(problem.id, "plain", k, prompt, tokens, logprobs, "", "length", grade, 0))
        groups.append(Group(problem, prompt, tuple(rollouts)))
    return groups


def _rival(name: str, everywhere: bool, vocabulary: int | None = None) -> Contestant:
    return Contestant(name, "benchmarks.policy_loss:full_logits", {"everywhere": everywhere, "vocabulary": vocabulary})


ROWS = (
    Row(
        "policy loss, forward + backward",
        (
            Contestant("p2o", "benchmarks.policy_loss:ours"),
            _rival("full logits, all positions", True),
            _rival("full logits, completions only", False),
        ),
        rate="tokens",
        memory="added_mib",
    ),
    Row(
        "policy loss, layers checkpointed",
        (
            Contestant("p2o", "benchmarks.policy_loss:ours", {"checkpointing": True}),
            _rival("full logits, all positions", True),
        ),
        rate="tokens",
        memory="added_mib",
    ),
    Row(
        "memory of the policy loss, vocabulary 152,064",
        (
            Contestant("p2o", "benchmarks.policy_loss:ours", {"vocabulary": LARGE_VOCABULARY}),
            Contestant("p2o, vocabulary 49,152", "benchmarks.policy_loss:ours"),
            _rival("full logits, completions only, 152,064", False, LARGE_VOCABULARY),
        ),
        memory="added_mib",
    ),
)
