"""How the commands end: 0 if all is well, 2 at what the user must fix, 1 at a fault, 128 and its number at a signal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


def refuse(message: object) -> NoReturn:
    """End with a message about what the user must fix."""
    print(message, file=sys.stderr)
    sys.exit(2)


class Task:
    """Whether the command's own part has begun, behind Hydra's composing. Hydra forgets it when the part ends."""

    begun = False


def run_command(main: Callable[[], object], root: type) -> None:
    """Run one of Hydra's commands, whose configuration has the shape ``root``.

    Hydra ends with 1 both if it cannot compose what was given and if a sweep's job failed: the former becomes 2.
    """
    from hydra.core.hydra_config import HydraConfig

    from p2o.config.suggest import unknown_keys

    if unknown := unknown_keys(sys.argv[1:], root):
        refuse("\n".join(unknown))
    try:
        main()
    except SystemExit as leaving:
        if leaving.code == 1 and not (Task.begun or HydraConfig.initialized()):
            sys.exit(2)
        raise
