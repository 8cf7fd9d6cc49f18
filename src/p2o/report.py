"""One HTML page of one run or many: ``python -m p2o.report 'run_dir=[runs/a,runs/b]' out=report.html``."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from p2o.command import refuse
from p2o.reporting.html_report import write_report
from p2o.reporting.runs import ReportError

USAGE = "usage: python -m p2o.report run_dir=<folder>|[<folder>,...] [out=<file.html>]"


def main(arguments: list[str] | None = None) -> None:
    """``out`` is by default ``report.html`` in the first folder."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options = OmegaConf.to_container(OmegaConf.from_cli(given))
    except OmegaConfBaseException as error:
        refuse(f"{error}\n{USAGE}")
    if not isinstance(options, dict) or not options.get("run_dir") or options.keys() - {"run_dir", "out"}:
        refuse(USAGE)
    named = options["run_dir"]
    run_dirs = [Path(str(name)) for name in (named if isinstance(named, list) else [named])]
    out = Path(str(options.get("out") or run_dirs[0] / "report.html"))
    try:
        write_report(run_dirs, out)
    except ReportError as error:
        refuse(error)
    print(out)


if __name__ == "__main__":
    main()
