"""One of the processes that a run with several devices starts: ``python -m p2o.rank``, by the command itself."""

from __future__ import annotations

from p2o.launch import launch
from p2o.processes import run_of_rank

if __name__ == "__main__":
    launch(*run_of_rank())
