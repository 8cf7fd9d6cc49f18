"""Named points of a run at which a test may end it.

Code that must survive a kill says where it is: ``fault_point("a micro-batch")``. Unless a test listens, that does
nothing. A point may carry facts, such as the file that is being written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Listener = Callable[[str, dict[str, Any]], None]
"""Called with a point's name and facts."""

_listener: Listener | None = None


def fault_point(name: str, **facts: Any) -> None:
    """Tell the listener, if there is one, that the run is at ``name``."""
    if _listener is not None:
        _listener(name, facts)


def listen(listener: Listener | None) -> None:
    """Let ``listener`` hear of every point from now on; None ends it."""
    global _listener
    _listener = listener
