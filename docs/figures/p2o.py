"""Draws docs/figures/p2o.svg: the alternating maximisation in one picture. Run: python docs/figures/p2o.py

It takes matplotlib: ``pip install -e '.[figures]'``.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

mpl.rcParams.update({"svg.fonttype": "none", "font.family": "DejaVu Sans", "svg.hashsalt": "p2o", "font.size": 10})

INK, POLICY, PROMPT, PAPER = "#1f2933", "#2f6f9f", "#b5651d", "#ffffff"


def box(ax: Axes, x: float, y: float, width: float, height: float, text: str, edge: str = INK) -> None:
    ax.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", fc=PAPER, ec=edge, lw=1.6)
    )
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=INK, linespacing=1.35)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", **style: object) -> None:
    colour = str(style.pop("color", INK))
    offset = style.pop("offset", (0.0, 0.14))
    assert isinstance(offset, tuple)
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=14, lw=1.4, color=colour, **style))
    if text:
        x, y = (start[0] + end[0]) / 2 + offset[0], (start[1] + end[1]) / 2 + offset[1]
        ax.text(x, y, text, ha="center", va="center", color=colour, fontsize=9, linespacing=1.25)


def main() -> None:
    figure, ax = plt.subplots(figsize=(9.4, 4.3))
    ax.set_xlim(0, 9.4)
    ax.set_ylim(0, 4.3)
    ax.axis("off")
    figure.patch.set_facecolor(PAPER)

    ax.text(0.1, 4.12, "policy phase, every round", color=POLICY, fontsize=11, weight="bold", va="center")
    box(ax, 0.1, 2.45, 1.7, 1.2, "questions x\n\nhard ones carry\ntemplates z", POLICY)
    box(ax, 2.75, 2.45, 1.9, 1.2, "policy $\\pi_\\theta$ answers\nK times, under\nx  or  T(x, z)", POLICY)
    box(ax, 5.55, 2.45, 1.35, 1.2, "grader\n$r \\in \\{0, 1\\}$", POLICY)
    box(ax, 7.75, 2.45, 1.55, 1.2, "update $\\theta$\non the plain x:\n$A_k \\nabla \\log \\pi_\\theta(y_k|x)$", POLICY)
    arrow(ax, (1.85, 3.05), (2.7, 3.05), color=POLICY)
    arrow(ax, (4.7, 3.05), (5.5, 3.05), "answers", color=POLICY)
    arrow(ax, (6.95, 3.05), (7.7, 3.05), "groups", color=POLICY)
    arrow(ax, (8.5, 3.7), (3.7, 3.7), "new weights", color=POLICY, connectionstyle="arc3,rad=0.16", offset=(0, 0.28))

    ax.text(0.1, 0.18, "prompt phase, at every epoch's end", color=PROMPT, fontsize=11, weight="bold", va="center")
    box(ax, 5.3, 0.55, 1.85, 1.1, "hard set\nfewer than $\\tau$ of K\nplain answers right", PROMPT)
    box(ax, 2.75, 0.55, 1.9, 1.1, "GEPA: reflect on\nfailures, write,\ntest, keep the best", PROMPT)
    box(ax, 0.1, 0.55, 1.7, 1.1, "greedy cover,\none template\nper rollout", PROMPT)
    arrow(ax, (6.22, 2.4), (6.22, 1.7), "who failed", color=PROMPT, offset=(0.55, 0.0))
    arrow(ax, (5.25, 1.1), (4.7, 1.1), color=PROMPT)
    arrow(ax, (2.7, 1.1), (1.85, 1.1), "Z", color=PROMPT)
    arrow(ax, (0.95, 1.7), (0.95, 2.4), "next epoch", color=PROMPT, offset=(0.52, 0.0))
    arrow(ax, (3.7, 2.4), (3.7, 1.7), "current policy", color=PROMPT, offset=(0.68, 0.0))

    figure.savefig(Path(__file__).with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
