"""What a run would do and take, told before anything is spent: ``debug=plan``."""

from p2o.planning.plan import Plan, make_plan
from p2o.planning.render import render
from p2o.planning.sweep import Variant, render_sweep, variants

__all__ = ["Plan", "Variant", "make_plan", "render", "render_sweep", "variants"]
