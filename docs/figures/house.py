"""Draws docs/figures/house.svg: the rooms of src/p2o, what each is for and its lines of code, read off the code.

Run: python docs/figures/house.py
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from test_house import FILES, LEVELS, lines_of_code, room  # noqa: E402

PURPOSE = {
    "run": "the commands: parse, compose, call",
    "launcher": "sweeps: one process per job; unknown keys and exit codes",
    "launch": "errors in one line, exit codes",
    "environment": "what a run ran on; its folder, for one process at a time",
    "job": "from a configuration to a finished run",
    "evaluation": "benchmark sets, statistics, table",
    "planning": "debug=plan: size, memory, cost",
    "callbacks": "checkpoints, stops, logs, progress, export",
    "reporting": "what is written of a run, and its page",
    "algorithm": "THE METHOD: alternation, policy step, losses, distillation, hard set, assignment",
    "evolution": "the prompt phase on gepa; reflectors",
    "rollout": "from requests to graded rollouts; engines",
    "policy": "the model that is trained",
    "rewards": "graders and their sandbox",
    "tasks": "where questions come from",
    "config": "one home for each key",
    "types": "values that travel; durable files; fault points",
}
WIDTH, ROW, GAP = 860, 54, 10


def main() -> None:
    lines = {path: lines_of_code(path) for path in FILES}
    rows = []
    for level, rooms in enumerate(reversed(LEVELS)):
        told = [name for name in rooms if name in PURPOSE]
        size = {name: sum(n for path, n in lines.items() if room(path) == name) for name in rooms}
        y = level * (ROW + GAP) + GAP
        boxes = told or [rooms[0]]
        width = (WIDTH - GAP * (len(boxes) + 1)) / len(boxes)
        for i, name in enumerate(boxes):
            x = GAP + i * (width + GAP)
            own = size[name] if len(boxes) > 1 else sum(size.values())
            title = name if len(boxes) > 1 else ", ".join(rooms)
            accent = ' stroke="#b5651d" stroke-width="2.5"' if name == "algorithm" else ' stroke="#2f6f9f"'
            rows.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width:.0f}" height="{ROW}" rx="6" fill="#fff"{accent}/>'
                f'<text x="{x + 12:.0f}" y="{y + 22}" font-weight="bold">{escape(title)}</text>'
                f'<text x="{x + width - 12:.0f}" y="{y + 22}" text-anchor="end" fill="#667">{own:,} lines</text>'
                f'<text x="{x + 12:.0f}" y="{y + 42}" fill="#445">{escape(PURPOSE.get(name, ""))}</text>'
            )
    height = len(LEVELS) * (ROW + GAP) + GAP
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="13" fill="#1f2933"><title>The rooms of p2o; imports run downward only</title>'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(rows)}</svg>\n'
    )
    (ROOT / "docs" / "figures" / "house.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
