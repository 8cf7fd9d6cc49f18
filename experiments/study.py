"""A study's table and figures: ``python experiments/study.py FOLDER [RUNS ...] [--axis KEY]``.

With folders of runs it first takes all runs below them that have ended into ``results.csv`` (a row a run) and
``epochs.csv`` (a row an epoch), where rows of other runs stay; without, it goes by those files. Then it writes
``figures/*.svg`` and the table in ``README.md`` between the lines ``<!-- table -->`` and ``<!-- end of table -->``.
``--axis`` names a configuration key that the study varies beside experiment and seed; the table is of its most frequent
value, a figure of all. The figures take matplotlib: ``pip install -e '.[figures]'``.

Accuracies are on plain held-out questions. Tokens are those of both phases, validation excluded: every variant pays the
same for it. Intervals are 95 % of Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from p2o.reporting.results import paid
from p2o.reporting.runs import Estimate, Run, estimate, load_run

RESULTS = (
    *("variant", "seed", "val_accuracy_initial", "val_accuracy_final"),
    *("generated_tokens", "trained_tokens", "seconds"),
)
EPOCHS = ("variant", "seed", "epoch", "tokens", "val_accuracy", "hard", "covered", "plain_pass_at_1")
FEWEST_SEEDS = 3
"""Below it no interval is shown: that of two seeds is wider than the scale."""
BEGIN, END = "<!-- table -->", "<!-- end of table -->"

Row = Mapping[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="*")
    parser.add_argument("--axis")
    parser.add_argument("--curves", nargs="+", default=[], help="the variants that the curves show")
    given = parser.parse_args()
    if given.runs:
        collect(given.folder, given.runs, given.axis)
    results, epochs = (read(given.folder / name) for name in ("results.csv", "epochs.csv"))
    usual = most_frequent(results, given.axis)
    main_results, main_epochs = (
        [row for row in rows if not given.axis or row[given.axis] == usual] for rows in (results, epochs)
    )
    insert_table(given.folder / "README.md", main_results)
    mpl.rcParams.update({"svg.hashsalt": "p2o", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    curves = [variant for variant in given.curves if variant in variants(main_results)]
    figures = given.folder / "figures"
    figures.mkdir(exist_ok=True)
    save(
        figures / "variants.svg",
        lambda axes: draw_variants(axes, main_results),
        height=0.6 + 0.24 * len(variants(main_results)),
    )
    save(figures / "accuracy.svg", lambda axes: draw_accuracy(axes, main_epochs, curves))
    save(figures / "hard_set.svg", lambda axes: draw_hard_set(axes, main_epochs, curves))
    if given.axis:
        save(figures / "axis.svg", lambda axes: draw_axis(axes, results, given.axis))


# ---------------------------------------------------------------------------------------------------- what was run


def collect(folder: Path, roots: Sequence[Path], axis: str | None) -> None:
    """Bring every run below ``roots`` that has ended into ``results.csv`` and ``epochs.csv``."""
    runs = [load_run(path.parent) for root in roots for path in sorted(root.rglob("summary.json"))]
    ended = [run for run in runs if run.summary["status"] != "running"]
    extra = (axis,) if axis else ()
    replace_rows(folder / "results.csv", (*RESULTS, *extra), [result_row(run, axis) for run in ended], axis)
    replace_rows(folder / "epochs.csv", (*EPOCHS, *extra), [r for run in ended for r in epoch_rows(run, axis)], axis)


def replace_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], axis: str | None) -> None:
    """Write ``rows``, and of the file's own those that are of other runs, in order."""

    def run(row: Mapping[str, Any]) -> tuple[float, str, int]:
        return float(row[axis]) if axis else 0.0, row["variant"], int(row["seed"])

    new = {run(row) for row in rows}
    others = [row for row in read(path) if run(row) not in new] if path.exists() else []
    write(path, columns, sorted([*others, *rows], key=lambda row: (run(row), int(row.get("epoch", 0)))))


def result_row(run: Run, axis: str | None) -> dict[str, Any]:
    accuracy, ledger = run.summary["val_accuracy"], run.summary["ledger"]
    return {
        "variant": run.summary["experiment"],
        "seed": run.seed,
        "val_accuracy_initial": accuracy["initial"],
        "val_accuracy_final": accuracy["final"],
        "generated_tokens": paid(ledger, "generated_tokens"),
        "trained_tokens": paid(ledger, "trained_tokens"),
        "seconds": round(ledger["seconds"]["total"], 1),
    } | ({axis: run.config[axis]} if axis else {})


def epoch_rows(run: Run, axis: str | None) -> Iterable[dict[str, Any]]:
    spent = {
        step: row["ledger/generated_tokens_all"]
        - row["ledger/generated_tokens/validation"]
        + row["ledger/trained_tokens_all"]
        for step, row in run.metrics.items()
        if "ledger/trained_tokens_all" in row
    }
    for epoch in run.summary["epochs"]:
        yield (
            {name: epoch[name] for name in EPOCHS if name in epoch}
            | {
                "variant": run.summary["experiment"],
                "seed": run.seed,
                "tokens": round(spent.get(epoch["step"], 0)),
            }
            | ({axis: run.config[axis]} if axis else {})
        )


def write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def most_frequent(rows: Sequence[Row], column: str | None) -> str:
    return Counter(row[column] for row in rows).most_common(1)[0][0] if column else ""


def variants(rows: Iterable[Row]) -> list[str]:
    """By mean final accuracy, the best first."""
    names = dict.fromkeys(row["variant"] for row in rows)
    return sorted(names, key=lambda name: (-of(rows, name, "val_accuracy_final").mean, name))


def of(rows: Iterable[Row], variant: str, column: str) -> Estimate:
    """Over the variant's seeds; without an interval where they are fewer than :data:`FEWEST_SEEDS`."""
    values = [float(row[column]) for row in rows if row["variant"] == variant]
    return estimate(values) if len(values) >= FEWEST_SEEDS else Estimate(fmean(values))


# ---------------------------------------------------------------------------------------------------- table and figures


def insert_table(readme: Path, rows: Sequence[Row]) -> None:
    """Replace what stands between the two marks of the README."""
    lines = [
        "| variant | seeds | before | after | interval | generated tokens | trained tokens | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in variants(rows):
        final = of(rows, name, "val_accuracy_final")
        half = "–" if final.half_width is None else f"± {final.half_width:.3f}"
        means = [of(rows, name, column).mean for column in ("generated_tokens", "trained_tokens", "seconds")]
        lines.append(
            f"| {name} | {sum(row['variant'] == name for row in rows)} "
            f"| {of(rows, name, 'val_accuracy_initial').mean:.3f} | {final.mean:.3f} | {half} "
            f"| {means[0]:,.0f} | {means[1]:,.0f} | {means[2]:.0f} |"
        )
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text("\n".join([before + BEGIN, *lines, END]) + after, encoding="utf-8")


def save(path: Path, draw: Callable[[Any], None], *, height: float = 3.4) -> None:
    figure, axes = plt.subplots(figsize=(6.4, height), layout="constrained")
    draw(axes)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def draw_variants(axes: Any, rows: Sequence[Row]) -> None:
    """Final accuracy: a dot a seed, a bar from end to end of the interval."""
    names = variants(rows)[::-1]
    for y, name in enumerate(names):
        final = of(rows, name, "val_accuracy_final")
        values = [float(row["val_accuracy_final"]) for row in rows if row["variant"] == name]
        axes.errorbar(final.mean, y, xerr=final.half_width or 0, fmt="|", color="C0", markersize=10, elinewidth=2)
        axes.plot(values, [y] * len(values), "o", color="black", markersize=2.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel("accuracy on plain held-out questions, after training")


def draw_accuracy(axes: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """A line a seed: accuracy against the tokens spent, so that equal costs stand above each other."""
    for color, name in enumerate(names):
        for label, run in runs_of(rows, name):
            xs, ys = ([float(row[column]) for row in run] for column in ("tokens", "val_accuracy"))
            axes.plot(xs, ys, color=f"C{color}", linewidth=1.2, alpha=0.8, label=label)
    axes.set_xlabel("tokens generated and trained")
    axes.set_ylabel("accuracy, plain")
    axes.set_ylim(-0.03, 1.03)
    axes.legend(frameon=False)


def draw_hard_set(axes: Any, rows: Sequence[Row], names: Sequence[str]) -> None:
    """A line a seed: the questions that are hard after each epoch."""
    for color, name in enumerate(names):
        for label, run in runs_of(rows, name):
            if any(float(row["covered"]) for row in run):
                xs, ys = ([float(row[column]) for row in run] for column in ("epoch", "hard"))
                axes.plot(xs, ys, color=f"C{color}", linewidth=1.2, alpha=0.8, label=label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("hard questions")
    axes.legend(frameon=False)


def runs_of(rows: Sequence[Row], variant: str) -> Iterable[tuple[str | None, list[Row]]]:
    """The variant's runs, the first with the variant's name as its label."""
    seeds = dict.fromkeys(row["seed"] for row in rows if row["variant"] == variant)
    for i, seed in enumerate(seeds):
        own = [row for row in rows if (row["variant"], row["seed"]) == (variant, seed) and row["val_accuracy"]]
        yield (None if i else variant), own


def draw_axis(axes: Any, rows: Sequence[Row], axis: str) -> None:
    """Final accuracy against the axis, for the variants that were run at more than one of its values."""
    names = [name for name in variants(rows) if len({row[axis] for row in rows if row["variant"] == name}) > 1]
    for color, name in enumerate(names):
        xs = sorted({float(row[axis]) for row in rows if row["variant"] == name})
        at = [of([row for row in rows if float(row[axis]) == x], name, "val_accuracy_final") for x in xs]
        bars = [e.half_width or 0 for e in at]
        shifted = [x * math.exp(0.04 * (color - len(names) / 2)) for x in xs]
        axes.errorbar(shifted, [e.mean for e in at], bars, fmt="o-", color=f"C{color}", capsize=2, label=name)
    axes.set_xscale("log")
    axes.set_xlabel(axis)
    axes.set_ylabel("accuracy, plain, after training")
    axes.set_ylim(-0.05, 1.05)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
