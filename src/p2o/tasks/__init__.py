"""Where questions come from, and what is left out of them and why."""

from p2o.tasks.problem_set import DataError, DataReport, ProblemSet
from p2o.tasks.problems import load_problems

__all__ = ["DataError", "DataReport", "ProblemSet", "load_problems"]
