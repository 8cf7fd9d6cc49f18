from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.plugin_util import markdown_to_safe_html

from p2o.algorithm.advantages import GroupAdvantages
from p2o.reporting.html_report import LONGEST, cut
from p2o.reporting.rollout_log import RolloutLog
from p2o.reporting.samples import Pair, pairs
from p2o.reporting.texts import pairs_html, templates_html

MakeScored = Callable[..., GroupAdvantages]


@pytest.fixture
def log(tmp_path: Path) -> RolloutLog:
    return RolloutLog(tmp_path / "rollouts")


def test_the_pair_that_a_template_helped_comes_first(log: RolloutLog, make_scored: MakeScored) -> None:
    groups = [
        make_scored("a-solved-plainly", "cc"),
        make_scored("b-both-wrong", "ww", ("plain", "z")),
        make_scored("c-helped", "wwc", ("plain", "z", "z")),
        make_scored("d-failed-plainly", "ww"),
    ]
    log.append(groups, epoch=0, round=1, step=1)
    shown = pairs(log.folder, 0, 10)
    assert [pair.problem_id for pair in shown] == [
        "c-helped", "b-both-wrong", "a-solved-plainly", "d-failed-plainly",
    ]  # fmt: skip
    best = shown[0]
    assert best.plain is not None and best.templated is not None  # noqa: PT018
    assert (best.plain["index"], best.templated["index"], best.templated["outcome"]) == (0, 2, "correct")
    assert shown[2].templated is None
    assert pairs(log.folder, 0, 1) == shown[:1]
    assert pairs(log.folder, 7, 1) == []


def test_a_fully_templated_question_gets_its_plain_answer_from_the_epoch_before(
    log: RolloutLog, make_scored: MakeScored
) -> None:
    log.append([make_scored("q", "ww"), make_scored("r", "ww")], epoch=0, round=1, step=1)
    log.close_epoch(0)
    log.append([make_scored("q", "cc", ("z", "z"))], epoch=1, round=1, step=2)
    (pair,) = pairs(log.folder, 1, 10)
    assert pair.plain is not None and pair.templated is not None  # noqa: PT018
    assert (pair.plain["epoch"], pair.templated["epoch"]) == (0, 1)


HOSTILE = "<script>alert(1)</script> | **bold** _it_ `code`\n# head\n1. one & [a](javascript:x) ![i](http://x/y.png)"


def test_what_a_model_wrote_is_shown_and_never_acted_on() -> None:
    row = {"text": HOSTILE, "outcome": "wrong", "tokens": 3, "template_id": "z", "reward": 0.0}
    pair = Pair("q", HOSTILE, HOSTILE, {**row, "template_id": "plain"}, row)
    page = markdown_to_safe_html(pairs_html([pair], {"z": HOSTILE}))
    assert not re.search(r"<(script|a|img|em|code|h1|ol)\b", page)
    shown = html.unescape(page)
    assert shown.count(HOSTILE.replace("\n", "<br>")) == 5


def test_a_long_answer_is_cut_and_says_so() -> None:
    shown = cut("x" * (LONGEST + 12))
    assert shown.startswith("x" * LONGEST + " ")
    assert "12 more characters" in shown


def test_the_table_of_templates_names_scores_parents_and_cover() -> None:
    templates = [
        {"id": "plain", "text": "", "parents": [], "epoch": 1, "dev_score": 0.25, "covers": ["a"], "chosen": False,
         "uses": 0},
        {"id": "abc", "text": "Count |slowly|.\nThen answer.", "parents": ["plain"], "epoch": 1, "dev_score": 0.5,
         "covers": ["a", "b"], "chosen": True, "uses": 7},
    ]  # fmt: skip
    pool = {
        "epoch": 1, "dev_ids": ["a", "b", "c", "d"], "seed_dev_score": 0.25, "metric_calls": 40, "reflection_calls": 5,
        "rejected": {"empty": 0, "too_long": 2}, "stop_reason": "budget", "pool": templates,
    }  # fmt: skip
    page = html.unescape(markdown_to_safe_html(templates_html(pool)))
    rows = re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)[1:]
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
    assert cells[0] == [
        "<strong>✓</strong>", "abc", "0.50", "2/4", "plain", "7", "Count |slowly|.<br>Then answer.",
    ]  # fmt: skip
    assert cells[1][:5] == ["", "plain", "0.25", "1/4", "–"]
    assert "2 too_long" in page
    assert "40 evaluations" in page
