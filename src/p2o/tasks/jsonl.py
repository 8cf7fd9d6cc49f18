"""One's own file: a JSON object a line."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from p2o.config.schema import ColumnsConfig, JsonlData
from p2o.tasks.problem_set import DataError, DataReport, Row, Unusable, distinct, question_id
from p2o.types import Problem, derive_seed


def load(data: JsonlData, report: DataReport) -> tuple[list[Problem], list[Problem]]:
    """The rows of ``path``, held-out ones from ``val_path`` or, by ``data.seed``, from ``path`` itself.

    Raises :class:`~p2o.tasks.DataError` for a file or column that is not there.
    """
    problems = distinct(read(Path(data.path).expanduser(), "data.path", data.columns), report)
    if data.val_path is not None:
        train = problems
        rows = read(Path(data.val_path).expanduser(), "data.val_path", data.columns)
        known = {problem.question for problem in train}
        val = [problem for problem in distinct(rows, report) if problem.question not in known]
    else:
        random.Random(derive_seed(data.seed, "split")).shuffle(problems)
        size = data.val_size or 0
        if not 0 < size < len(problems):
            raise DataError(
                f"data.val_size={data.val_size} of {len(problems)} usable rows in {data.path}: it must leave rows on "
                "both sides; lower data.val_size or give data.val_path"
            )
        train, val = problems[size:], problems[:size]
    return train[: data.train_size], val[: data.val_size] if data.val_path is not None else val


def read(path: Path, key: str, columns: ColumnsConfig) -> Iterator[Row]:
    """The rows of a file, broken ones as :class:`~p2o.tasks.problem_set.Unusable`; a BOM and blank lines are passed.

    A column that the first readable row lacks is an error: it is a wrong name, not a bad row.
    """
    if not path.is_file():
        raise DataError(f"{key}={path} is no file: give {key}=<a .jsonl file>")
    first = True
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path.name}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            row = _object(line, where)
            if isinstance(row, Unusable):
                yield row
                continue
            if first:
                _check_columns(row, columns, path)
                first = False
            yield to_problem(row, columns, where, path.stem)


def to_problem(row: dict[str, Any], columns: ColumnsConfig, where: str, source: str) -> Row:
    """A row as a problem; a missing or wrongly typed value makes it unusable. Numbers are taken as answers."""
    question, answer = row.get(columns.question), row.get(columns.answer)
    if not isinstance(question, str):
        return Unusable("question is no text", where, repr(question))
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return Unusable("answer is neither text nor number", where, repr(answer))
    identifier = row.get(columns.id) if columns.id else None
    name = question_id(source, question) if identifier is None else str(identifier)
    return Problem(name, question, str(answer), str(row.get("source", source)))


def _object(line: bytes, where: str) -> dict[str, Any] | Unusable:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unusable("line that is no JSON", where, f"{error}: {line[:80]!r}")
    return value if isinstance(value, dict) else Unusable("line that is no object", where, repr(value)[:80])


def _check_columns(row: dict[str, Any], columns: ColumnsConfig, path: Path) -> None:
    for key in ("id", "question", "answer"):
        name = getattr(columns, key)
        if name is not None and name not in row:
            raise DataError(
                f"{path} has no column {name!r} (data.columns.{key}); its columns are {', '.join(row)}: "
                f"give data.columns.{key}=<one of them>"
            )
