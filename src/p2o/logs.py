"""What the terminal and ``log.txt`` show: the package's own lines, without secrets, and few of other libraries'."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

TERMINAL = Console(stderr=True)
"""One console for bars, log lines and tables, so that they do not overwrite each other."""

SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
SHORTEST_SECRET = 8
"""Shorter values (a port, "true") are not keys, and hiding them would blank out ordinary words."""

HARMLESS = (
    r".*module\(s\) in eval mode at the start of training.*",  # no dropout is trained: train and eval are the same
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch
    r".*does not have many workers.*",  # the loader hands out text
    r"Detected call of `lr_scheduler\.step\(\)` before.*",  # the schedule counts rounds, with or without a signal
)
"""Warnings of libraries that can go, each with the reason."""


def quiet_libraries() -> None:
    """Keep the warnings of Lightning and transformers, drop their notices and bars; the run has bars of its own.

    The hub's library logs a line for every file that it tries again; those go too, since it reports a final failure.
    """
    from transformers.utils import logging as transformers_logging  # slow to import

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)


def redact(text: str) -> str:
    """``text`` with the values of environment variables that look like keys replaced by the variables' names."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_NAME.search(name):
            text = text.replace(value, f"[{name}]")
    return text


class RedactingFormatter(logging.Formatter):
    """Works on the finished line, so that a key inside a traceback is caught too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


@contextmanager
def silent() -> Iterator[None]:
    """While the block runs, the package logs nothing: another rank says it."""
    logger = logging.getLogger("p2o")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextmanager
def log_to(path: Path, console: Console = TERMINAL) -> Iterator[None]:
    """While the block runs, what the package logs goes to ``console`` and, with times, to the end of ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(path, encoding="utf-8")
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    screen = RichHandler(console=console, show_path=False, show_time=False, markup=False)
    screen.setFormatter(RedactingFormatter("%(message)s"))
    logger = logging.getLogger("p2o")
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(file)
    logger.addHandler(screen)
    try:
        yield
    finally:
        logger.removeHandler(file)
        logger.removeHandler(screen)
        file.close()
        logger.setLevel(before[0])
        logger.propagate = before[1]


def progress_bars(console: Console, *, enabled: bool = True) -> Progress:
    """Bars with a count, the time left and a ``note``. If nobody watches a terminal, they do nothing."""
    return Progress(
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not (enabled and console.is_terminal),
        transient=True,
    )


def progress_line(console: Console, text: str, seconds_left: float | None = None) -> None:
    """A line that stays, whatever the terminal's width; ``seconds_left`` are told at its end."""
    left = "" if seconds_left is None else f"  {int(seconds_left // 60)}:{int(seconds_left % 60):02d} left"
    console.print(text.rstrip() + left, markup=False, highlight=False, soft_wrap=True)
