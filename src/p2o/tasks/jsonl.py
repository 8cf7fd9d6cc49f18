"""Your own file: one JSON object per line."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from p2o.config.schema import ColumnsConfig, JsonlData
from p2o.tasks.problem_set import DataError, DataReport, Row, Sieve, Unusable, question_id
from p2o.types import Problem, derive_seed


def load(data: JsonlData, report: DataReport) -> tuple[list[Problem], list[Problem]]:
    """(training, held-out) rows of ``path``, the held-out ones from ``val_path`` if it is given.

    Which rows, and in what order, follows from ``data.seed`` alone. Raises :class:`~p2o.tasks.DataError` for a
    missing file or column, and for sizes that the file does not have.
    """
    sieve = Sieve(report)
    if data.val_path is not None:  # first, so that a question in both files is held out
        held_out = list(sieve(read(data.val_path, "data.val_path", data.columns)))
        val = _pick(held_out, data.val_size, "val", data)
        rest = list(sieve(read(data.path, "data.path", data.columns)))
    else:
        if not data.val_size:
            raise DataError("data=jsonl needs held-out questions: give data.val_size=<rows> or data.val_path=<file>")
        usable = list(sieve(read(data.path, "data.path", data.columns)))
        val = _pick(usable, data.val_size, "val", data)
        chosen = {problem.id for problem in val}
        rest = [problem for problem in usable if problem.id not in chosen]
    return _pick(rest, data.train_size, "train", data), val


def _pick(problems: list[Problem], size: int | None, part: str, data: JsonlData) -> list[Problem]:
    if size is None:
        return problems
    if size > len(problems):
        raise DataError(
            f"data.{part}_size={size}, but {data.val_path if part == 'val' and data.val_path else data.path} has only "
            f"{len(problems)} usable rows for it: lower data.{part}_size"
        )
    order = random.Random(derive_seed(data.seed, part)).sample(range(len(problems)), size)
    return [problems[index] for index in sorted(order)]


def read(name: str, key: str, columns: ColumnsConfig) -> Iterator[Row]:
    """The rows of a file, broken ones as :class:`~p2o.tasks.problem_set.Unusable`; a BOM and blank lines are skipped.

    A column that the first readable row lacks is an error: it is a wrong name, not a bad row.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{key}={name} is not a file: give {key}=<a .jsonl file>")
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
                check_columns(row, columns, f"line {number} of {path}")
                first = False
            yield to_problem(row, columns, where, path.stem)


def to_problem(row: Mapping[str, Any], columns: ColumnsConfig, where: str, source: str) -> Row:
    """A row as a problem; a missing or wrongly typed value makes it unusable. Numbers are accepted as answers."""
    question, answer = row.get(columns.question), row.get(columns.answer)
    if not isinstance(question, str):
        return Unusable("question that is not text", where, f"{columns.question}={_shown(question)}")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return Unusable("answer that is neither text nor number", where, f"{columns.answer}={_shown(answer)}")
    identifier = row.get(columns.id) if columns.id else None
    if not isinstance(identifier, str | int | None):
        return Unusable("id that is neither text nor integer", where, f"{columns.id}={_shown(identifier)}")
    name = question_id(source, question) if identifier is None else str(identifier)
    origin = row.get("source")
    return Problem(name, question, str(answer), origin if isinstance(origin, str) else source)


def check_columns(names: Collection[str], columns: ColumnsConfig, where: str) -> None:
    """Raise :class:`~p2o.tasks.DataError` for a column that is not among ``names``."""
    for key in ("id", "question", "answer"):
        name = getattr(columns, key)
        if name is not None and name not in names:
            raise DataError(
                f"{where} has no column {name!r} (data.columns.{key}); its columns are {', '.join(names)}: "
                f"give data.columns.{key}=<one of them>"
            )


def _object(line: bytes, where: str) -> dict[str, Any] | Unusable:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Unusable("line that is not JSON", where, f"{error}: {line[:80]!r}")
    return value if isinstance(value, dict) else Unusable("line that is not an object", where, _shown(value))


def _shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:80]}" if value is not None else "nothing"
