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
    """The hub's dataset."""
    subset: str | None = None
    """The dataset's configuration."""
    split: str = "test"
    """The dataset's split."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Of the hub's dataset."""
    answer_after: str | None = None
    """The gold answer is what follows the last of these marks in the hub's answer column."""
    limit: int | None = key(None, above=0)
    """First questions to take; null = ``limit``."""


@dataclass(kw_only=True)
class BenchmarksConfig:
    """The questions."""

    data_dir: str | None = None
    """Folder with the named sets as jsonl files; null = they come from the hub."""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    """Of the files in ``data_dir`` and of ``files``."""
    sets: dict[str, BenchmarkSet] = field(default_factory=dict)
    """The named sets; ``benchmarks=[gsm8k]`` chooses them."""
    files: list[str] = field(default_factory=list)
    """Further questions: jsonl files by path."""
    runs: list[str] = field(default_factory=list)
    """Run folders whose held-out questions are judged, by the prompt and the reward of their run."""


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
    """Evolved prompt that goes before it: a text file, or ``RUN_DIR:ID``, a template of that run's pool.json."""
    samples: int | None = key(None, above=0)
    """Answers per question; null = 16 for sets under 100 questions, else 1."""
    temperature: float | None = key(None, at_least=0)
    """null = 0.6 if a question is answered more than once, else 0 (greedy)."""
    limit: int | None = key(None, above=0)
    """Only the first questions of each set. The protocol still goes by the size of the whole set."""
    pass_at: list[int] = key([1, 4, 16], at_least=1, identity=False)
    """The k of Pass@k; those above the number of samples are left out."""
    confidence: float = key(0.95, above=0, below=1, identity=False)
    """Level of the intervals."""
    resamples: int = key(9999, above=0, identity=False)
    """Draws of the bootstrap and of the permutation test."""
    compare: str | None = key(None, identity=False)
    """Result folder of another evaluation, compared with this one on the questions that both have."""
    chunk: int = key(128, above=0)
    """Answers between two writes to disk, which is the most that a kill loses."""
    seed: int = 0
    """Of the answers and the statistics."""
    run_dir: str = key(MISSING, identity=False)
    """The evaluation's folder."""
    resume: bool = key(True, identity=False)
    """Continue the evaluation in ``run_dir``; false refuses a folder that is not empty."""
    threads: int | None = key(None, above=0, identity=False)
    """torch threads; null = the processors of the machine."""
    progress: bool = key(True, identity=False)
    """Show how the evaluation proceeds."""
