"""Finished or running runs, read back from their folders and grouped by what they study."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from scipy import stats

from p2o import json_lines
from p2o.config.identity import flat, identity
from p2o.errors import InputError
from p2o.reporting.template_pool import read_pools

LABELLED = 2
"""Differing keys that a label names where two groups have the same experiment."""


class ReportError(InputError):
    """A folder that is asked for is no run's folder."""


@dataclass(frozen=True)
class Run:
    """One run as its folder tells it. ``metrics`` maps steps to all scalars of that step."""

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    metrics: Mapping[int, Mapping[str, float]]
    pools: Sequence[Mapping[str, Any]]

    @property
    def seed(self) -> int:
        return int(self.summary["seed"])


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in their seed alone."""

    label: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The first run's, as dotted keys."""
        return self.runs[0].config

    @property
    def baseline(self) -> bool:
        """Whether no templates are evolved: plain GRPO."""
        return self.config.get("gepa.variant") == "off"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the half-width of its 95 % interval, null for a single run."""

    mean: float
    half_width: float | None = None


@dataclass(frozen=True)
class Point:
    """A point of a curve."""

    x: float
    y: Estimate


def load_run(folder: Path) -> Run:
    """Raises :class:`ReportError` naming the file that is missing."""
    for name in ("config.yaml", "summary.json"):
        if not (folder / name).is_file():
            raise ReportError(f"{folder} is no run's folder: it has no {name}. Give run_dir=[<folder>,<folder>]")
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    for row in json_lines.read(folder / "metrics.jsonl"):
        metrics[row["step"]] |= {name: value for name, value in row.items() if value is not None}
    return Run(
        folder=folder,
        config=flat(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))),
        summary=json.loads((folder / "summary.json").read_text(encoding="utf-8")),
        metrics=dict(metrics),
        pools=list(read_pools(folder)),
    )


def grouped(runs: Iterable[Run]) -> list[RunGroup]:
    """Runs of one configuration together, by seed; baselines first, then in the order given."""
    same: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        same[json.dumps(studied(run.config), sort_keys=True, default=str)].append(run)
    members = [tuple(sorted(group, key=lambda run: run.seed)) for group in same.values()]
    labels = _labels([group[0] for group in members])
    groups = [RunGroup(label, group) for label, group in zip(labels, members, strict=True)]
    return sorted(groups, key=lambda group: not group.baseline)


def studied(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that make two runs different studies."""
    return {key: value for key, value in identity(config).items() if key != "seed"}


def differences(groups: Sequence[RunGroup]) -> dict[str, list[Any]]:
    """Dotted keys whose values differ, with one value a group (null where it has no such key)."""
    configs = [studied(group.config) for group in groups]
    keys = dict.fromkeys(key for config in configs for key in config)
    columns = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}


def _labels(firsts: Sequence[Run]) -> list[str]:
    """The experiment's name; where several share it, with values that tell them apart, and a number if need be."""
    names = [str(run.summary["experiment"]) for run in firsts]
    labels = []
    for run, name in zip(firsts, names, strict=True):
        rivals = [RunGroup("", (other,)) for other, its in zip(firsts, names, strict=True) if its == name]
        told = [f"{key}={run.config.get(key)}" for key in _telling(differences(rivals))[:LABELLED]]
        labels.append(f"{name} ({', '.join(told)})" if told else name)
    return [label if labels.count(label) == 1 else f"{label} #{i + 1}" for i, label in enumerate(labels)]


def _telling(columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """The keys, in order, that tell apart what the keys before them do not."""
    told: list[str] = []
    kinds = 1
    for key in columns:
        rows = zip(*(map(str, columns[other]) for other in (*told, key)), strict=True)
        if (finer := len(set(rows))) > kinds:
            told.append(key)
            kinds = finer
    return told


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and half-width of the 95 % interval by Student's t with n - 1 degrees of freedom."""
    n = len(values)
    if n < 2:
        return Estimate(fmean(values))
    return Estimate(fmean(values), float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n))


def optional_estimate(values: Iterable[float | None]) -> Estimate | None:
    """:func:`estimate` of the values that there are; None where there are none."""
    known = [value for value in values if value is not None]
    return estimate(known) if known else None


def curve(group: RunGroup, name: str, *, x: str | None = None, window: int = 1) -> list[Point]:
    """A scalar over steps, or over the scalar ``x``, as a mean over the seeds, at the steps that all of them have.

    ``window`` smooths each run first by the mean over that many steps around each one. Where ``x`` was not measured
    yet (step 0) it is 0.
    """
    series = [_smooth({s: row[name] for s, row in run.metrics.items() if name in row}, window) for run in group.runs]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    return [
        Point(
            fmean(run.metrics[step].get(x, 0.0) for run in group.runs) if x else step,
            estimate([one[step] for one in series]),
        )
        for step in steps
    ]


def epoch_curve(group: RunGroup, field: str, *, at: int | None = None) -> list[Point]:
    """A field of the epochs' summaries over epochs, as a mean over the seeds, where any of them measured it.

    With ``at`` only where the epoch's ``evolved_k`` is that.
    """
    rows = [
        {epoch["epoch"]: epoch.get(field) if at in (None, epoch.get("evolved_k")) else None for epoch in epochs}
        for epochs in (run.summary["epochs"] for run in group.runs)
    ]
    epochs = sorted(set.intersection(*(set(row) for row in rows)))
    estimates = ((epoch, optional_estimate(row[epoch] for row in rows)) for epoch in epochs)
    return [Point(epoch, value) for epoch, value in estimates if value is not None]


def _smooth(series: Mapping[int, float], window: int) -> dict[int, float]:
    steps = sorted(series)
    half = window // 2
    return {
        step: fmean(series[other] for other in steps[max(0, i - half) : i + half + 1]) for i, step in enumerate(steps)
    }
