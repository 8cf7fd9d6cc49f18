"""Which questions are answered, and under which template: files, the hub's form, runs, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml
from hydra.errors import MissingConfigException

from p2o.config import Config, ConfigError, EvaluateConfig
from p2o.config.load import to_plain
from p2o.config.suggest import unknown_keys
from p2o.evaluation.benchmarks import load_benchmarks
from p2o.evaluation.template import read_template
from p2o.tasks import DataError

CONF = Path(__file__).parents[2] / "conf"
SETS = sorted(path.stem for path in (CONF / "benchmarks").glob("*.yaml"))
DATA = Path(__file__).parents[2] / "../shared/data"

Configure = Callable[..., EvaluateConfig]


def write(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_set_composes_and_names_where_it_comes_from(configure_evaluation: Configure) -> None:
    sets = configure_evaluation(f"benchmarks=[{','.join(SETS)}]").benchmarks.sets
    assert sorted(sets) == SETS
    assert all(one.file.endswith(".jsonl") and "/" in one.dataset for one in sets.values())
    default = configure_evaluation().benchmarks.sets
    assert list(default) == ["aime24", "aime25", "amc", "math500", "minerva", "olympiadbench"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the data are not here")
def test_the_real_files_hold_the_published_numbers_of_questions(configure_evaluation: Configure) -> None:
    config = configure_evaluation(
        "benchmarks=[aime24,aime25,amc]", f"benchmarks.data_dir={DATA}", "limit=7", "reward=exact"
    )
    assert [(one.name, one.size, len(one.problems)) for one in load_benchmarks(config)] == [
        ("aime24", 30, 7),
        ("aime25", 30, 7),
        ("amc", 83, 7),
    ]


def test_files_are_taken_in_their_order_up_to_the_limit(
    configure_evaluation: Configure, questions: Path, tmp_path: Path
) -> None:
    broken = write(
        tmp_path / "broken.jsonl", [{"q": "one?", "a": 1, "n": "x"}, {"q": "two?", "a": r"\frac{1}{", "n": "y"}]
    )
    (one,) = load_benchmarks(
        configure_evaluation("benchmarks=[]", f"benchmarks.files=[{questions}]", "limit=3", "reward=exact")
    )
    assert (one.name, one.size, one.problems[2].question) == ("mine", 24, "What is 2 plus ten ten 2?")
    assert one.problems[0].id.startswith("mine-")
    columns = "benchmarks.columns={id: n, question: q, answer: a}"
    (two,) = load_benchmarks(configure_evaluation("benchmarks=[]", f"benchmarks.files=[{broken}]", columns))
    assert [problem.id for problem in two.problems] == ["x"]
    assert dict(two.report.faults) == {"gold answer that the grader cannot read": 1}


def test_a_set_has_the_same_ids_from_the_hub_and_from_a_file(configure_evaluation: Configure, tmp_path: Path) -> None:
    """The hub's form: a worked answer, or a list of answers; here in files that `datasets` opens."""
    worked = write(tmp_path / "worked.jsonl", [{"question": "2 + 3?", "answer": "2 + 3 = 5 #### 4\n#### 5"}])
    listed = write(tmp_path / "listed.jsonl", [{"question": "x^2 = 4?", "final_answer": ["2", "-2"]}])
    from_hub = load_benchmarks(
        configure_evaluation(
            "reward=exact",
            "benchmarks=[gsm8k,olympiadbench]",
            f"benchmarks.sets.gsm8k.dataset={worked}",
            f"benchmarks.sets.olympiadbench.dataset={listed}",
        )
    )
    assert [one.problems[0].answer for one in from_hub] == ["5", "2, -2"]
    write(tmp_path / "gsm8k_test.jsonl", [{"problem": "2 + 3?", "answer": "5"}])
    (local,) = load_benchmarks(
        configure_evaluation("reward=exact", "benchmarks=[gsm8k]", f"benchmarks.data_dir={tmp_path}")
    )
    assert local.problems[0].id == from_hub[0].problems[0].id


def test_the_held_out_questions_of_a_run_come_with_its_prompt_and_reward(
    configure_evaluation: Configure, configure: Callable[..., Config], tmp_path: Path
) -> None:
    config = configure("+experiment=grpo", "+scale=latent_skill", "data.prompt='Well: {question}'")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    (one,) = load_benchmarks(configure_evaluation("benchmarks=[]", f"benchmarks.runs=[{tmp_path}]"))
    assert (one.name, one.size, one.prompt, one.reward.extract) == (
        "held-out-grpo",
        config.data.val_size,
        "Well: {question}",
        ["answer_line"],
    )


def test_what_is_not_there_is_named_with_the_mend(configure_evaluation: Configure, questions: Path) -> None:
    here = questions.parent
    mine = f"benchmarks.files=[{questions}]"
    for overrides, message in (
        (["benchmarks=[gsm8k]", f"benchmarks.data_dir={here}"], "no gsm8k_test.jsonl; its jsonl files: mine.jsonl"),
        (
            ["benchmarks=[]", f"benchmarks.files=[{here}/gone.jsonl]"],
            r"benchmarks.files\[0\]=.*gone.jsonl is not a f",
        ),
        (["benchmarks=[]", mine, "benchmarks.columns.answer=gold"], "has no column 'gold'"),
        (["benchmarks=[]", f"benchmarks.files=[{questions},{questions}]"], "two sets are called mine"),
        (["benchmarks=[]", f"benchmarks.runs=[{here}]"], "has no config.yaml"),
        (["benchmarks=[amc]", f"benchmarks.sets.amc.dataset={here}/gone.txt"], "amc cannot be loaded from the hub"),
    ):
        with pytest.raises(DataError, match=message):
            load_benchmarks(configure_evaluation("reward=exact", *overrides))


def test_an_unknown_set_or_key_is_named(configure_evaluation: Configure) -> None:
    with pytest.raises(MissingConfigException, match="benchmarks/gsm9k"):
        configure_evaluation("benchmarks=[gsm9k]")
    assert unknown_keys(["sample=3"], EvaluateConfig) == ["unknown key sample, did you mean samples?"]
    arguments = ["benchmarks=[amc]", "benchmarks.sets.amc.limit=3", "benchmarks.data_dir=x", "model.path=x"]
    assert unknown_keys(arguments, EvaluateConfig) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["benchmarks=[]"], "there are no questions"),
        (["samples=4", "temperature=0"], "samples=4 needs temperature > 0"),
        (["rollout.temperature=1"], "give temperature=1.0"),
        (["limit=0"], "limit=0 must be above 0"),
        (["benchmarks.sets.amc.limit=0"], "benchmarks.sets.amc.limit=0 must be above 0"),
        (["pass_at=[0]"], "pass_at="),
        (["prompt=hello"], "prompt must contain"),
        (["reward=reasoning_gym"], "use reward=math"),
        (["rollout=vllm_server"], "needs rollout.urls"),
    ],
)
def test_rules_across_fields_name_the_key_and_the_mend(
    overrides: list[str], message: str, configure_evaluation: Configure
) -> None:
    with pytest.raises(ConfigError, match=message):
        configure_evaluation(*overrides)


def test_a_template_is_a_files_text_or_one_of_a_run(tmp_path: Path) -> None:
    assert read_template(None) == ""
    file = tmp_path / "prompt.txt"
    file.write_text("Think twice.\n\nThen answer.\n")
    assert read_template(str(file)) == "Think twice.\n\nThen answer."
    pool = tmp_path / "evolution" / "epoch-000" / "pool.json"
    pool.parent.mkdir(parents=True)
    pool.write_text(json.dumps({"pool": [{"id": "plain", "text": ""}, {"id": "ab12", "text": "Draw it."}]}))
    assert read_template(f"{tmp_path}:ab12") == "Draw it."
    file.write_text(" \n")
    for name, message in (
        (str(file), "is empty"),
        (str(tmp_path / "absent.txt"), "is not a file"),
        (f"{tmp_path}:cd34", "has no template 'cd34'; it has: plain, ab12"),
    ):
        with pytest.raises(DataError, match=message):
            read_template(name)
