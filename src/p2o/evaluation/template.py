"""The template that ``template`` names: the prompt without training, as a baseline for what training does."""

from __future__ import annotations

from pathlib import Path

from p2o.reporting.template_pool import template_texts
from p2o.tasks import DataError


def read_template(name: str | None) -> str:
    """The text of a file, or of ``RUN_DIR:ID``, a template that a run found; "" (the plain prompt) for None.

    White space at its ends is dropped, as an editor adds it. Raises :class:`~p2o.tasks.DataError` if there is no
    such file or template, and for an empty one.
    """
    if name is None:
        return ""
    path = Path(name).expanduser()
    if path.is_file():
        text = path.read_text(encoding="utf-8").strip()
        if not text:
            raise DataError(f"template={name} is empty: write a prompt into it, or leave template out")
        return text
    run_dir, colon, identifier = name.rpartition(":")
    if not colon:
        raise DataError(f"template={name} is not a file: give a text file, or RUN_DIR:ID for a template of a run")
    texts = template_texts(Path(run_dir).expanduser())
    if identifier not in texts:
        there = ", ".join(texts) or "none"
        raise DataError(f"template={name}: {run_dir}/evolution has no template {identifier!r}; it has: {there}")
    return texts[identifier]
