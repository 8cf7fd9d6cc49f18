"""The whole command on a tiny random-weight model: answers, counts, kill and resume, comparison, adapters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checksum
import pytest
import torch
from hydra import compose, initialize_config_module

from p2o.config import EvaluateConfig, load_evaluation
from p2o.config.schema import FullTuning, HfRollout, LoraTuning, ModelConfig, RandomModel
from p2o.evaluation.judge import evaluate
from p2o.evaluation.judged_model import load_judged
from p2o.evaluation.scores import RESULTS
from p2o.evaluation.table import tables
from p2o.policy.builders import ModelError
from p2o.policy.model import Policy, load_policy
from p2o.rollout.hf.hf_engine import HfEngine
from p2o.run_folder import RunFolderError
from p2o.tasks import DataError
from p2o.types import Problem, Prompt, SamplingParams, derive_seed, template_id

Configure = Callable[..., EvaluateConfig]
Json = dict[str, Any]

TINY = (
    "model=tiny",
    "reward=function",
    "reward.function=checksum.score",
    "benchmarks=[]",
    "rollout.max_new_tokens=8",
    "prompt='{question}'",
    "temperature=1",
    "samples=4",
    "pass_at=[1,2,4,8]",
    "chunk=10",
    "threads=1",
    "progress=false",
)


def rows_of(run_dir: Path, name: str = "mine") -> list[Json]:
    with (run_dir / "answers" / f"{name}.jsonl").open("rb") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def judged(questions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Json]:
    """The folder and the results of one whole evaluation."""
    run_dir = tmp_path_factory.mktemp("whole") / "judged"
    overrides = [*TINY, f"benchmarks.files=[{questions}]", f"run_dir={run_dir}"]
    with initialize_config_module("p2o.conf", version_base="1.3"):
        config = load_evaluation(compose("evaluate", overrides=overrides))
    return run_dir, evaluate(config)


def test_the_figures_are_those_of_the_written_answers(judged: tuple[Path, Json], questions: Path) -> None:
    run_dir, results = judged
    assert results == json.loads((run_dir / RESULTS).read_text())
    rows, golds = rows_of(run_dir), [json.loads(line) for line in questions.read_text().splitlines()]
    assert [(row["question"], row["gold"], row["sample"]) for row in rows] == [
        (gold["problem"], gold["answer"], i) for gold in golds for i in range(4)
    ]
    assert len({row["seed"] for row in rows}) == len(rows)
    assert rows[5]["seed"] == derive_seed(0, "evaluate", "mine", rows[5]["id"], 1)
    scores = [
        checksum.score(row["text"], Problem(row["id"], row["question"], row["gold"])) if row["text"].strip() else 0.0
        for row in rows
    ]
    assert [row["outcome"] == "correct" for row in rows] == [score == 1 for score in scores]
    correct = [sum(scores[i : i + 4]) for i in range(0, len(rows), 4)]
    one = results["sets"]["mine"]
    assert one["accuracy"] == pytest.approx(sum(scores) / len(scores))
    assert 0 < one["accuracy"] < 1
    assert one["pass_at"]["4"]["mean"] == pytest.approx(sum(c > 0 for c in correct) / 24)
    assert one["pass_at"]["2"]["mean"] == pytest.approx(sum({0: 0, 1: 1 / 2, 2: 5 / 6}.get(c, 1) for c in correct) / 24)
    assert one["pass_at"].keys() == {"1", "2", "4"}
    assert one["interval"]["low"] < one["accuracy"] < one["interval"]["high"]
    assert {k: n for k, n in one["outcomes"].items() if n} == Counter(row["outcome"] for row in rows)
    assert one["generated_tokens"] == sum(row["tokens"] for row in rows)
    assert one["cut_off"] == sum(row["finish_reason"] == "length" for row in rows)
    assert results["average"]["accuracy"] == one["accuracy"]
    assert [table.row_count for table in tables(results)] == [1]


def test_a_killed_evaluation_continues_to_the_same_result(
    judged: tuple[Path, Json], configure_evaluation: Configure, questions: Path, tmp_path: Path
) -> None:
    whole, results = judged
    cut = tmp_path / "cut"
    overrides = [*TINY, f"benchmarks.files=[{questions}]", f"run_dir={cut}"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), checksum.SLOW: "1"}
    command = [sys.executable, "-m", "p2o.evaluate", *overrides]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    answers = cut / "answers" / "mine.jsonl"
    while process.poll() is None and not (answers.exists() and answers.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert answers.exists(), errors.decode()
    assert not (cut / RESULTS).exists()
    assert 0 < len(answers.read_bytes().splitlines()) < 96
    with answers.open("ab") as file:  # what a kill in the middle of a write leaves
        file.write((whole / "answers" / "mine.jsonl").read_bytes()[:100])
    assert evaluate(configure_evaluation(*overrides)) == results
    assert answers.read_bytes() == (whole / "answers" / "mine.jsonl").read_bytes()


def test_a_finished_evaluation_is_only_counted_again(
    judged: tuple[Path, Json], configure_evaluation: Configure, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, results = judged
    given = (*TINY, f"benchmarks.files=[{questions}]", f"run_dir={run_dir}")

    def load_nothing(*_: object) -> None:
        raise AssertionError("the model is not needed")

    monkeypatch.setattr("p2o.evaluation.judge.load_judged", load_nothing)
    again = evaluate(configure_evaluation(*given, "pass_at=[3]", "confidence=0.5"))
    (one, before) = (value["sets"]["mine"] for value in (again, results))
    assert one["pass_at"].keys() == {"3"}
    assert one["accuracy"] == before["accuracy"]
    assert before["interval"]["low"] < one["interval"]["low"] < one["interval"]["high"] < before["interval"]["high"]

    with pytest.raises(RunFolderError) as caught:
        evaluate(configure_evaluation(*given, "samples=3", "seed=1"))
    assert "  samples: 4 there, 3 asked for" in str(caught.value)
    assert "  seed: 0 there, 1 asked for" in str(caught.value)
    evaluate(configure_evaluation(*given))
    unchanged = questions.read_text()
    questions.write_text(unchanged.replace("What is 1 ", "What was 1 "))
    try:
        with pytest.raises(RunFolderError, match=r"mine\.jsonl, line 5 answers another question"):
            evaluate(configure_evaluation(*given))
    finally:
        questions.write_text(unchanged)


def test_two_evaluations_are_compared_question_by_question(
    judged: tuple[Path, Json], configure_evaluation: Configure, questions: Path, tmp_path: Path
) -> None:
    plain, _ = judged
    template = tmp_path / "template.txt"
    template.write_text("Think.\n")
    other = tmp_path / "templated"
    overrides = [*TINY, f"benchmarks.files=[{questions}]", f"run_dir={other}", f"template={template}", "limit=10"]
    with pytest.raises(DataError, match=r"compare=.* has no results\.json"):
        evaluate(configure_evaluation(*overrides, f"compare={other}"))
    results = evaluate(configure_evaluation(*overrides, f"compare={plain}"))
    assert results["template"] == "Think."
    assert {row["template_id"] for row in rows_of(other)} == {template_id("Think.")}
    assert rows_of(other)[0]["prompt_tokens"] == rows_of(plain)[0]["prompt_tokens"] + len("Think.\n\n")

    shares: dict[str, list[float]] = {}
    for run_dir in (other, plain):
        rows = rows_of(run_dir)[:40]
        for row in rows:
            shares.setdefault(row["id"], []).append(row["outcome"] == "correct")
    differences = [sum(answers[:4]) / 4 - sum(answers[4:]) / 4 for answers in shares.values()]
    found = results["comparison"]["sets"]["mine"]
    assert found["mean"] == pytest.approx(sum(differences) / 10)
    assert (found["questions"], found["only_here"], found["only_there"]) == (10, 0, 14)
    assert (found["better"], found["worse"]) == (sum(d > 0 for d in differences), sum(d < 0 for d in differences))
    assert found["test"] == "paired permutation"
    assert [table.row_count for table in tables(results)] == [1, 1]


def test_a_question_that_does_not_fit_is_reported_and_counts_as_wrong(
    configure_evaluation: Configure, questions: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()[:3]]
    rows[1]["problem"] += " and ten" * 30
    mixed = tmp_path / "mine.jsonl"
    mixed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    limits = ("rollout.max_prompt_tokens=100", "samples=2", "chunk=3")
    results = evaluate(configure_evaluation(*TINY, *limits, f"benchmarks.files=[{mixed}]"))
    one = results["sets"]["mine"]
    assert (one["questions"], one["outcomes"]["too_long"]) == (3, 2)
    written = rows_of(tmp_path / "judged")
    assert [row["outcome"] == "too_long" for row in written] == [False, False, True, True, False, False]
    assert one["accuracy"] == pytest.approx(sum(row["outcome"] == "correct" for row in written) / 6)
    assert (
        "mine: 1 of 3 questions have more than 100 prompt tokens and count as wrong"
        in (tmp_path / "judged" / "log.txt").read_text()
    )


def greedy(policy: Policy) -> list[tuple[int, ...]]:
    engine = HfEngine(policy, HfRollout())
    engine.sync(0)
    prompts = [Prompt(tuple(policy.tokenizer.encode(text)), 0) for text in ("one", "and two")]
    return [made.tokens for made in engine.generate(prompts, SamplingParams(0.0, 12), version=0)]


@pytest.mark.parametrize("tuning", [LoraTuning(r=4, learning_rate=1.0), FullTuning(learning_rate=1.0)])
def test_what_a_run_saves_is_what_is_judged(tuning: LoraTuning | FullTuning, tmp_path: Path) -> None:
    """An adapter's folder brings its base along; a full model's folder stands for itself."""
    base = RandomModel(path=str(tmp_path / "base"), dtype="float32")
    policy = load_policy(base, tuning, seed=0)
    untrained = greedy(policy)
    with torch.no_grad():
        for index, p in enumerate(policy.trainable.values()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(index)) * 0.5)
    policy.save(tmp_path / "model")
    judged = load_judged(ModelConfig(path=str(tmp_path / "model"), dtype="float32"))
    assert greedy(judged) == greedy(policy) != untrained
    assert not judged.trainable
    plain = ModelConfig(path=str(tmp_path / "base"), dtype="float32")
    assert greedy(load_judged(plain)) == untrained
    with_idle_adapter = load_judged(plain, as_adapter=True)
    assert with_idle_adapter.lora
    assert greedy(with_idle_adapter) == untrained


def test_an_adapter_without_its_base_says_so(tmp_path: Path) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"belongs to .*gone, see base_model_name_or_path"):
        load_judged(ModelConfig(path=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    with pytest.raises(ModelError, match="type IA3, not LORA"):
        load_judged(ModelConfig(path=str(tmp_path)))
