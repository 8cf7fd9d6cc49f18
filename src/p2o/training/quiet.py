"""Libraries' remarks that would bury the run's own lines, each with the reason why it can go."""

from __future__ import annotations

import logging
import warnings

from transformers.utils import logging as transformers_logging

HARMLESS = (
    r".*module\(s\) in eval mode at the start of training.*",  # no dropout is trained: train and eval are the same
    r".*isinstance\(treespec, LeafSpec\).*",  # Lightning's own use of torch
    r".*does not have many workers.*",  # the loader hands out text
    r"Detected call of `lr_scheduler\.step\(\)` before.*",  # the schedule counts rounds, with or without a signal
)


def quiet_libraries() -> None:
    """Keep Lightning's and transformers' warnings, drop their notices and bars; the run has bars of its own.

    Of the hub's library a line for every file that it tries again is dropped too: what it fails at in the end is told.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
