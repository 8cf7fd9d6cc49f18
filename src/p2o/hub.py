"""The model hub, which may not be there."""

from __future__ import annotations

import logging
from functools import cache

from huggingface_hub import constants, get_session

WAIT_S = 5.0
"""Seconds that the hub has to respond."""

log = logging.getLogger(__name__)


@cache
def prefer_cache_without_hub() -> None:
    """Ask the hub once whether it is there; if it is not, its libraries take what is cached on this machine.

    Left to themselves they try every file six times, with half a minute of waits, before they give up.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=WAIT_S)
    except Exception as error:  # of whichever HTTP client the library uses
        constants.HF_HUB_OFFLINE = True
        log.warning(
            "the hub %s cannot be reached (%s: %s): only what is cached on this machine can be loaded",
            constants.ENDPOINT,
            type(error).__name__,
            error,
        )
