"""Template evaluation: 16 templates on 3 questions each, then the empty template on a dev set of 64, greedy.

The rival is gepa's default adapter with a callable model, which gets one example after the other. The callable puts
the template where p2o puts it and answers with transformers' ``generate`` in bfloat16, so that both sides see the
same prompts and, up to rounding, write the same answers.
"""

from __future__ import annotations

from benchmarks.harness import Contestant, Row
from benchmarks.stopwatch import Stopwatch
from benchmarks.subject import configure, device, grader, load, model_folder, problems, renderer

WAYS = (
    "Work step by step.",
    "First restate the question in your own words.",
    "Write the calculation before the result.",
    "Count carefully, one item at a time.",
)
ENDINGS = (
    "End with a line 'Answer: <value>'.",
    "Put the final value into \\boxed{}.",
    "Give nothing but the final value on the last line.",
    "Say the final value twice.",
)
TEMPLATES = tuple(f"{way} {ending}" for way in WAYS for ending in ENDINGS)
MINIBATCH = 3
DEV = 64
NEW_TOKENS = 32


def ours(watch: Stopwatch) -> None:
    """The adapter of the prompt phase, with sampler, grader pool and journal."""
    import tempfile
    from pathlib import Path

    from p2o.evolution.adapter import COMPONENT, TemplateAdapter
    from p2o.evolution.journal import Journal
    from p2o.rollout.hf.hf_engine import HfEngine
    from p2o.rollout.ledger import Ledger
    from p2o.rollout.sampler import Sampler
    from p2o.types import Phase, SamplingParams

    config = configure()
    policy = load(config)
    engine = HfEngine(policy, config.rollout)  # type: ignore[arg-type]
    engine.sync(0)
    questions = list(problems(DEV))
    with grader(config) as pool, tempfile.TemporaryDirectory() as folder:
        sampler = Sampler(engine, renderer(config, policy), pool, Ledger())
        run = 0
        while True:
            adapter = TemplateAdapter(
                lambda requests: sampler.sample(
                    requests, SamplingParams(0.0, NEW_TOKENS), phase=Phase.EVOLUTION, version=0
                ),
                Journal(Path(folder) / f"{run}.jsonl", Ledger()),
                samples=1,
                seed=0,
                dev_ids=(),
            )
            run += 1
            watch.begin()
            before = sampler.ledger.totals().generated_tokens
            adapter.batch_evaluate([({COMPONENT: z}, _minibatch(questions, i)) for i, z in enumerate(TEMPLATES)])
            adapter.batch_evaluate([({COMPONENT: ""}, questions)])
            watch.end(tokens=sampler.ledger.totals().generated_tokens - before)


def gepa_default(watch: Stopwatch) -> None:
    import torch
    from gepa.adapters.default_adapter.default_adapter import DefaultAdapter
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = configure()
    folder = model_folder(config)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device()).eval()
    tokens = 0

    def answer(messages: list[dict[str, str]]) -> str:
        nonlocal tokens
        chat = [{"role": "user", "content": "\n\n".join(m["content"] for m in messages if m["content"])}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False).to(device())
        out = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=tokenizer.eos_token_id)[
            0, inputs["input_ids"].shape[1] :
        ]
        tokens += len(out)
        return tokenizer.decode(out, skip_special_tokens=True)

    adapter = DefaultAdapter(model=answer)  # type: ignore[arg-type]
    questions = [{"input": p.question, "additional_context": {}, "answer": p.answer} for p in problems(DEV)]
    while True:
        watch.begin()
        tokens = 0
        for i, template in enumerate(TEMPLATES):
            adapter.evaluate(_minibatch(questions, i), {"template": template})  # type: ignore[arg-type]
        adapter.evaluate(questions, {"template": ""})  # type: ignore[arg-type]
        watch.end(tokens=tokens)


def _minibatch(questions: list, i: int) -> list:
    """The questions of the i-th template."""
    return questions[i * MINIBATCH : (i + 1) * MINIBATCH]


ROWS = (
    Row(
        f"template evaluation, 16 × 3 + {DEV}",
        (
            Contestant("p2o", "benchmarks.template_evaluation:ours"),
            Contestant("gepa's default adapter", "benchmarks.template_evaluation:gepa_default"),
        ),
    ),
)
