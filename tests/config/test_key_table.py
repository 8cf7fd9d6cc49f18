"""``docs/configuration.md`` says what the schema says."""

from __future__ import annotations

import re
from pathlib import Path

from p2o.config import Config, EvaluateConfig
from p2o.config.key import is_node, keys
from p2o.config.key_table import render

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_committed_page_is_current() -> None:
    assert PAGE.read_text() == render(), "python -m p2o.config.key_table > docs/configuration.md"


def test_every_key_is_on_the_page_with_a_meaning() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)` \|.* \| (.+) \|$", render(), re.MULTILINE))
    there = {name for root in (Config, EvaluateConfig) for name, _, kind in keys(root) if not is_node(kind)}
    assert there <= rows.keys()
    assert all(meaning.strip() for meaning in rows.values())


def test_a_row_says_type_default_range_identity_and_meaning() -> None:
    page = render()
    assert "| `rollout.gpu_memory_utilization` | `float` | `0.5` | above 0 and at most 1 | no | Share of a" in page
    assert '| `policy.baseline` | `str` | `"group"` | one of group, template | yes | What rewards are' in page


def test_a_node_of_both_commands_stands_there_once() -> None:
    headings = [line for line in render().splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))
    assert {"## `model`", "## `benchmarks`", "### `rollout`: vllm"} <= set(headings)
