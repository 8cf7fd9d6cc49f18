"""The shape of ``conf/evaluate.yaml``: what ``python -m p2o.evaluate`` judges, on what, and how."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from p2o.config.schema import ColumnsConfig, ModelConfig, RewardConfig, RolloutConfig


@dataclass(kw_only=True)
class BenchmarkSet:
    """A named set: its dataset on the hub, and its file where ``benchmarks.data_dir`` is given."""

    file: str = MISSING
    dataset: str = MISSING
    subset: str | None = None
    split: str = "test"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Of the hub's dataset."""
    answer_after: str | None = None
    """The gold answer is what follows the last of these marks in the hub's answer column."""
    limit: int | None = None
    """First questions to take; null = ``limit``."""


@dataclass(kw_only=True)
class BenchmarksConfig:
    data_dir: str | None = None
    """Folder with the named sets as jsonl files; null = they come from the hub."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Of the files in ``data_dir`` and of ``files``."""
    sets: dict[str, BenchmarkSet] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    """Further questions: jsonl files by path."""
    runs: list[str] = field(default_factory=list)
    """Run folders whose held-out questions are judged, by the prompt and the reward of their run."""


@dataclass(kw_only=True)
class EvaluateConfig:
    model: ModelConfig = MISSING
    """``path`` is a model's folder, an adapter's folder or a hub id."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = MISSING
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    prompt: str = MISSING
    """The plain prompt x; ``{question}`` stands for the question."""
    template: str | None = None
    """Evolved prompt that goes before it: a text file, or ``RUN_DIR:ID``, a template of that run's pool.json."""
    samples: int | None = None
    """Answers a question; null = 16 for sets under 100 questions, else 1."""
    temperature: float | None = None
    """null = 0.6 where a question is answered more than once, else 0 (greedy)."""
    limit: int | None = None
    """Only the first questions of each set. The protocol still goes by the size of the whole set."""
    pass_at: list[int] = field(default_factory=lambda: [1, 4, 16])
    """The k of Pass@k; those above the number of samples are left out."""
    confidence: float = 0.95
    resamples: int = 9999
    compare: str | None = None
    """Result folder of another evaluation, compared with this one on the questions that both have."""
    chunk: int = 128
    """Answers between two writes to disk; a kill costs at most so many."""
    seed: int = 0
    run_dir: str = MISSING
    resume: bool = True
    threads: int | None = None
    """torch threads; null = the processors of the machine."""
    progress: bool = True
