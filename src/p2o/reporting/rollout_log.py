"""Every rollout of a run on disk: appended round by round, one Parquet file per epoch in the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from p2o import json_lines
from p2o.algorithm.advantages import GroupAdvantages
from p2o.files import replacing

SCHEMA = pa.schema(
    [
        ("epoch", pa.int32()),
        ("round", pa.int32()),
        ("step", pa.int32()),
        ("problem_id", pa.string()),
        ("template_id", pa.string()),
        ("index", pa.int32()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("text", pa.string()),
        ("outcome", pa.string()),
        ("extracted", pa.string()),
        ("reward", pa.float32()),
        ("advantage", pa.float32()),
        ("prompt_tokens", pa.int32()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("version", pa.int32()),
    ]
)
"""One row per rollout. ``prompt_tokens`` and ``tokens`` are counts; ``answer`` is the gold one."""

ROWS_PER_BATCH = 4096


class RolloutLog:
    """The ``rollouts/`` folder of a run.

    While an epoch goes on its rollouts are in ``epoch-000.jsonl``, so that a kill costs at most a line;
    :meth:`close_epoch` turns it into ``epoch-000.parquet``. ``round`` is the number of rounds of the epoch that
    are done once the rollouts' round is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def append(self, groups: Iterable[GroupAdvantages], *, epoch: int, round: int, step: int) -> None:
        """Write the rollouts of one round."""
        json_lines.append(self._lines(epoch), rows_of(groups, epoch, round, step))

    def close_epoch(self, epoch: int) -> None:
        """Turn the epoch's lines into its Parquet file. Doing it again changes nothing."""
        lines, table = self._lines(epoch), self._table(epoch)
        if lines.exists():
            rows = json_lines.read(lines)
            with replacing(table) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
                while batch := list(islice(rows, ROWS_PER_BATCH)):
                    writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
            lines.unlink()

    def rewind(self, epoch: int, round: int) -> None:
        """Go back to where ``round`` rounds of ``epoch`` were done: later rollouts go, earlier epochs are closed."""
        for path in sorted(self.folder.glob("epoch-*.*")):
            other = int(path.stem.removeprefix("epoch-"))
            if other > epoch:
                path.unlink()
            elif other < epoch:
                self.close_epoch(other)
        if self._table(epoch).exists():
            json_lines.rewrite(self._lines(epoch), read_epoch(self._table(epoch)))
            self._table(epoch).unlink()
        json_lines.rewind(self._lines(epoch), lambda row: row["round"] <= round)

    def _lines(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:03d}.jsonl"

    def _table(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:03d}.parquet"


def rows_of(groups: Iterable[GroupAdvantages], epoch: int, round: int, step: int) -> Iterator[dict[str, Any]]:
    """One row of :data:`SCHEMA` per rollout."""
    for scored in groups:
        group = scored.group
        for rollout, advantage in zip(group.rollouts, scored.values, strict=True):
            yield {
                "epoch": epoch,
                "round": round,
                "step": step,
                "problem_id": rollout.problem_id,
                "template_id": rollout.template_id,
                "index": rollout.index,
                "question": group.problem.question,
                "answer": group.problem.answer,
                "text": rollout.text,
                "outcome": rollout.grade.outcome.value,
                "extracted": rollout.grade.extracted,
                "reward": rollout.reward,
                "advantage": advantage,
                "prompt_tokens": len(rollout.prompt_tokens),
                "tokens": len(rollout.tokens),
                "finish_reason": rollout.finish_reason,
                "version": rollout.policy_version,
            }


def read_epoch(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one epoch's file, Parquet or lines, in the order in which they were written."""
    if path.suffix == ".jsonl":
        yield from json_lines.read(path)
        return
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(ROWS_PER_BATCH):
            yield from batch.to_pylist()


def epoch_files(folder: Path) -> dict[int, Path]:
    """Epoch → the file that holds its rollouts, in order."""
    files = {int(path.stem.removeprefix("epoch-")): path for path in sorted(folder.glob("epoch-*.jsonl"))}
    files |= {int(path.stem.removeprefix("epoch-")): path for path in sorted(folder.glob("epoch-*.parquet"))}
    return dict(sorted(files.items()))
