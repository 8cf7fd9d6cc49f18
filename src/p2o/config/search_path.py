"""Where Hydra looks for YAML files besides ``conf/`` and ``--config-dir``."""

from __future__ import annotations

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class ExperimentsSearchPath(SearchPathPlugin):
    """Adds every ``experiments/<name>/conf`` of the working directory; a checkout has some, other folders have none."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in sorted(Path("experiments").glob("*/conf")):
            search_path.append("experiments", f"file://{folder.resolve()}")
