"""The questions to judge a model on: named sets from the hub or from files, any jsonl, a run's held-out questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import yaml

from p2o.config.evaluation import BenchmarkSet, EvaluateConfig
from p2o.config.load import SCHEMAS, from_plain
from p2o.config.schema import ColumnsConfig, DataConfig, HubData, RewardConfig
from p2o.rewards import GraderPool
from p2o.tasks import DataError, DataReport, load_problems
from p2o.tasks.jsonl import read, to_problem
from p2o.tasks.problem_set import Row, Sieve, question_id
from p2o.tasks.problems import gradable
from p2o.types import Problem


@dataclass(frozen=True)
class Benchmark:
    """Questions that one figure is about. ``size`` counts all usable ones, ``problems`` are those to answer."""

    name: str
    problems: tuple[Problem, ...]
    size: int
    prompt: str
    reward: RewardConfig
    report: DataReport


def load_benchmarks(config: EvaluateConfig) -> list[Benchmark]:
    """Every set that ``config`` asks for, in the order sets, files, runs; each with its first ``limit`` questions.

    Raises :class:`~p2o.tasks.DataError` for a file, dataset or column that is not there and for two sets of one name.
    """
    wanted = config.benchmarks
    found: list[Benchmark] = []
    if wanted.sets or wanted.files:
        with GraderPool(config.reward) as grader:
            found += [_named(name, one, config, grader) for name, one in wanted.sets.items()]
            for number, path in enumerate(wanted.files):
                rows = _file_rows(Path(path).stem, path, f"benchmarks.files[{number}]", wanted.columns)
                found.append(_usable(Path(path).stem, rows, config, config.limit, grader))
    found += [_held_out(Path(run).expanduser(), config.limit) for run in wanted.runs]
    names = [benchmark.name for benchmark in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"two sets are called {', '.join(twice)}: rename a file of benchmarks.files, or ask for one")
    return found


def _named(name: str, one: BenchmarkSet, config: EvaluateConfig, grader: GraderPool) -> Benchmark:
    wanted = config.benchmarks
    limit = one.limit if one.limit is not None else config.limit
    if wanted.data_dir is None:
        return _usable(name, _hub_rows(name, one), config, limit, grader)
    path = Path(wanted.data_dir).expanduser() / one.file
    if not path.is_file():
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.jsonl"))) or "none"
        raise DataError(
            f"{name}: benchmarks.data_dir={path.parent} has no {one.file}; its jsonl files: {there}. "
            f"Give benchmarks.sets.{name}.file=<one of them>, or benchmarks.data_dir=null to take it from the hub"
        )
    rows = _file_rows(name, str(path), f"benchmarks.sets.{name}.file", wanted.columns)
    return _usable(name, rows, config, limit, grader)


def _file_rows(name: str, path: str, key: str, columns: ColumnsConfig) -> Iterator[Row]:
    for row in read(path, key, columns):
        # The same id wherever the set comes from, so that results can be compared.
        if columns.id is None and isinstance(row, Problem):
            row = replace(row, id=question_id(name, row.question))
        yield row


def _hub_rows(name: str, one: BenchmarkSet) -> Iterator[Row]:
    from p2o.tasks.hub_data import open_dataset  # brings in the datasets library, which takes its time

    data = HubData(dataset=one.dataset, subset=one.subset, split=one.split, columns=one.columns)
    try:
        dataset = open_dataset(data)
    except DataError as error:
        raise DataError(
            f"{name} cannot be loaded from the hub ({error.__cause__ or error}): check the network and "
            f"benchmarks.sets.{name}, or give benchmarks.data_dir=<a folder with {one.file}>"
        ) from error
    for index, row in enumerate(dataset):
        yield to_problem(_with_final_answer(row, one), one.columns, f"row {index} of {one.dataset}", name)


def _with_final_answer(row: Mapping[str, Any], one: BenchmarkSet) -> dict[str, Any]:
    """Several answers as one list; of a worked answer only what follows the mark."""
    answer = row.get(one.columns.answer)
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    if one.answer_after is not None and isinstance(answer, str):
        answer = answer.rpartition(one.answer_after)[2].strip()
    return {**row, one.columns.answer: answer}


def _usable(name: str, rows: Iterator[Row], config: EvaluateConfig, limit: int | None, grader: GraderPool) -> Benchmark:
    report = DataReport(source=name)
    kept = gradable(list(Sieve(report)(rows)), grader, report)
    return _first(name, kept, limit, config.prompt, config.reward, report)


def _first(
    name: str, problems: list[Problem], limit: int | None, prompt: str, reward: RewardConfig, report: DataReport
) -> Benchmark:
    if not problems:
        raise DataError(f"{name} has no usable question\n{report.render()}")
    return Benchmark(name, tuple(problems[:limit]), len(problems), prompt, reward, report)


def _held_out(run_dir: Path, limit: int | None) -> Benchmark:
    """The questions that a training run validates on."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise DataError(f"benchmarks.runs: {run_dir} has no config.yaml: give the folder of a training run")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "data" not in tree or "tuning" not in tree:
        raise DataError(f"benchmarks.runs: {path} is not a training run's: give the folder of one")
    data = cast(DataConfig, from_plain(SCHEMAS["data"][tree["data"]["kind"]], tree["data"]))
    reward = cast(RewardConfig, from_plain(RewardConfig, tree["reward"]))
    problems = load_problems(data, reward)
    return _first(f"held-out-{tree['name']}", list(problems.val), limit, data.prompt, reward, problems.report)
