"""Templates and rollouts as Markdown for TensorBoard's text tab.

What a model wrote is data, not markup: every character that Markdown or HTML could act on is written as an entity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from p2o.reporting.samples import Pair, Row
from p2o.types import PLAIN

LONGEST = 4000
"""Characters of one answer that are shown; the whole of it is in ``rollouts/``."""


def literal(text: str) -> str:
    """``text`` so that Markdown shows it as it is, line breaks included, also inside a table cell."""
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"
    escaped = re.sub(r"[^\w\s]|_", lambda match: f"&#{ord(match[0])};", text.strip())
    return re.sub(r"\r\n|\r|\n", "<br>", escaped)


def templates_markdown(pool: Mapping[str, Any]) -> str:
    """A table of an epoch's templates, the best first, under a line that says how the evolution went."""
    dev = len(pool["dev_ids"])
    refused = ", ".join(f"{count} {literal(kind)}" for kind, count in pool["rejected"].items() if count) or "none"
    head = (
        f"**Epoch {pool['epoch']}**: the empty template scores {pool['seed_dev_score']:.2f} on {dev} dev questions; "
        f"{pool['metric_calls']} evaluations, {pool['reflection_calls']} reflections; "
        f"proposals refused: {refused}; stopped: {literal(str(pool['stop_reason']))}"
    )
    rows = [
        f"| {'**✓**' if template['chosen'] else ''} | {template['id']} | {template['dev_score']:.2f} "
        f"| {len(template['covers'])}/{dev} | {', '.join(template['parents']) or '–'} | {template['uses']} "
        f"| {literal(template['text']) or '*(empty: the question as it stands)*'} |"
        for template in sorted(pool["pool"], key=lambda template: -template["dev_score"])
    ]
    table = ["| chosen | id | dev score | solved | parents | rollouts | template |", "|---|---|---|---|---|---|---|"]
    return "\n".join([head, "", *table, *rows])


def pairs_markdown(pairs: Sequence[Pair], templates: Mapping[str, str]) -> str:
    """Each question with its plain and its templated answer in two columns; ``templates`` maps ids to texts."""
    blocks = []
    for pair in pairs:
        shown = pair.templated["template_id"] if pair.templated else PLAIN
        title = f"plain {_verdict(pair.plain)}", f"template {shown} {_verdict(pair.templated)}"
        template = templates.get(shown, "(text not on disk)")
        cells = (_answer(pair.plain), f"{literal(template)}<br>**↓**<br>{_answer(pair.templated)}")
        width = 2 if pair.templated else 1
        blocks.append(
            "\n".join(
                [
                    f"**{literal(pair.question)}** (gold answer {literal(pair.answer)})",
                    "",
                    f"| {' | '.join(title[:width])} |",
                    "|---" * width + "|",
                    f"| {' | '.join(cells[:width])} |",
                ]
            )
        )
    return "\n\n".join(blocks)


def _verdict(row: Row | None) -> str:
    return f"– {row['outcome']}, {row['tokens']} tokens" if row else "– none"


def _answer(row: Row | None) -> str:
    return literal(row["text"]) if row else ""
