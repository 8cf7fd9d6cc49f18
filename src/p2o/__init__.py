"""P²O: joint policy and prompt optimization of language models on verifiable tasks (arXiv 2603.21877)."""

__version__ = "0.1.0"
