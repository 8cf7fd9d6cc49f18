"""Templates and rollouts as HTML for TensorBoard's text tab, by the page's Jinja environment.

What a model wrote is data, not markup: Jinja escapes it, and TensorBoard takes what is inside of HTML as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from p2o.reporting.html_report import environment
from p2o.reporting.samples import Pair


def templates_html(pool: Mapping[str, Any]) -> str:
    """A table of an epoch's templates, the best first, under a line that says how the evolution went."""
    return _drawn("templates", pool)


def pairs_html(pairs: Sequence[Pair], templates: Mapping[str, str]) -> str:
    """Each question with its plain and its templated answer in two columns; ``templates`` maps ids to texts."""
    return _drawn("pairs", pairs, templates)


def _drawn(macro: str, *given: Any) -> str:
    return str(getattr(environment().get_template("tensorboard.html").module, macro)(*given))
