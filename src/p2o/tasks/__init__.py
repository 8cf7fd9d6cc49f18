"""Where questions come from, and what is left out of them and why."""

from p2o.tasks.load import load_problems
from p2o.tasks.problem_set import DataError, DataReport, ProblemSet

__all__ = ["DataError", "DataReport", "ProblemSet", "load_problems"]
