"""Judging a model: benchmark questions in, graded answers on disk, Pass@k with intervals and comparisons out."""
