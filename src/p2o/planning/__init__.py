"""What a run would do and take, told before anything is spent: ``debug=plan``."""

from p2o.planning.plan import Plan, make_plan
from p2o.planning.render import render

__all__ = ["Plan", "make_plan", "render"]
