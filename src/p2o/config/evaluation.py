"""The shape of ``conf/evaluate.yaml``: what ``python -m p2o.evaluate`` judges, on what, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from p2o.config.key import key
from p2o.config.schema import BOXED, ColumnsConfig, ModelConfig, RewardConfig, RolloutConfig


@dataclass(kw_only=True)
class BenchmarkSet:
    """A named set: its dataset on the hub, and its file if ``benchmarks.data_dir`` is given."""

    file: str = MISSING
    """The set's file in ``benchmarks.data_dir``."""
    dataset: str = MISSING
    """The dataset's hub id."""
    subset: str | None = None
    """Name of the dataset's configuration."""
    split: str = "test"
    """The dataset's split."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns of the hub's dataset."""
    answer_after: str | None = None
    """A mark in the hub's answer column; the gold answer follows its last occurrence."""
    limit: int | None = key(None, above=0)
    """Questions to take from the start; null = ``limit``."""


@dataclass(kw_only=True)
class BenchmarksConfig:
    """The questions."""

    data_dir: str | None = None
    """Folder with the named sets as jsonl files; null = they come from the hub."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Columns of the files in ``data_dir`` and in ``files``."""
    sets: dict[str, BenchmarkSet] = field(default_factory=dict)
    """The named sets; ``benchmarks=[gsm8k]`` chooses them."""
    files: list[str] = field(default_factory=list)
    """Further questions: jsonl files by path."""
    runs: list[str] = field(default_factory=list)
    """Run folders; their held-out questions are answered and graded with the run's own prompt and reward."""


@dataclass(kw_only=True)
class EvaluateConfig:
    """An evaluation of a model on questions with known answers."""

    model: ModelConfig = MISSING
    """``path`` is a model's folder, an adapter's folder or a hub id."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = MISSING
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    prompt: str = BOXED
    """The plain prompt x; ``{question}`` stands for the question."""
    template: str | None = None
    """Template to put before it: a text file, or ``RUN_DIR:ID`` for one from that run's pool.json."""
    samples: int | None = key(None, above=0)
    """Answers per question; null = 16 for sets under 100 questions, else 1."""
    temperature: float | None = key(None, at_least=0)
    """Sampling temperature; null = 0.6 if a question is answered more than once, else 0 (greedy)."""
    limit: int | None = key(None, above=0)
    """Questions to take from the start of each set. The protocol still follows the whole set's size."""
    pass_at: list[int] = key([1, 4, 16], at_least=1, identity=False)
    """Values of k for Pass@k; those above the number of samples are left out."""
    confidence: float = key(0.95, above=0, below=1, identity=False)
    """Confidence level of the intervals."""
    resamples: int = key(9999, above=0, identity=False)
    """Draws of the bootstrap and of the permutation test."""
    compare: str | None = key(None, identity=False)
    """Result folder of another evaluation, compared with this one on the questions that both have."""
    chunk: int = key(128, above=0)
    """Answers between writes to disk; a kill loses at most this many."""
    seed: int = 0
    """Seed of the answers and the statistics."""
    run_dir: str = key(MISSING, identity=False)
    """The evaluation's folder."""
    resume: bool = key(True, identity=False)
    """Continue the evaluation in ``run_dir``; false refuses a folder that is not empty."""
    threads: int | None = key(None, above=0, identity=False)
    """torch threads; null = one per processor."""
    progress: bool = key(True, identity=False)
    """Show progress."""
