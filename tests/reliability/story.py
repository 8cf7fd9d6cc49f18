"""Everything that a run leaves, as one value that two runs can be compared by, clocks and paths aside."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from p2o.callbacks.checkpoint import read_checkpoint

OF_THE_CLOCK = ("time/", "final/seconds", "_hparams_", "hparams")


def story(run_dir: Path) -> dict[str, Any]:
    """File → content that must be the same, bit for bit."""
    told: dict[str, Any] = {"files": sorted(_names(run_dir))}
    for name in ("model/adapter_model.safetensors", "model/adapter_config.json"):
        told[name] = hashlib.sha256((run_dir / name).read_bytes()).hexdigest()
    for name in ("last", "best"):
        checkpoint = read_checkpoint(run_dir / "checkpoints" / f"{name}.ckpt")
        told[f"{name} weights"] = {key: _bits(tensor) for key, tensor in checkpoint.trainable.items()}
        told[f"{name} optimizer"] = {
            f"{index} {key}": _bits(tensor)
            for index, moments in checkpoint.optimizer["state"].items()
            for key, tensor in moments.items()
        }
        told[f"{name} schedule"] = repr(checkpoint.scheduler)
        state = checkpoint.state.to_json()
        del state["files"]
        told[f"{name} state"] = _timeless(state)
    told["summary"] = _timeless(json.loads((run_dir / "summary.json").read_text()))
    for path in sorted((run_dir / "evolution").glob("*/*.json")):
        if path.name in ("pool.json", "assignment.json"):
            told[str(path.relative_to(run_dir))] = path.read_text()
    for path in sorted((run_dir / "rollouts").iterdir()):
        told[path.name] = pq.read_table(path).to_pylist()
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    told["metrics"] = [{key: row[key] for key in row if not key.startswith(OF_THE_CLOCK)} for row in metrics]
    told["tensorboard"] = _tensorboard(run_dir)
    return told


def differing(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """The names under which two stories differ."""
    return [name for name in one | two if one.get(name) != two.get(name)]


def _names(run_dir: Path) -> set[str]:
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("tensorboard/", "checkpoints/previous"))}


def _tensorboard(run_dir: Path) -> dict[str, Any]:
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.startswith(OF_THE_CLOCK)
    }
    texts = {
        tag: [(event.step, event.tensor_proto.string_val[:]) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
        if "text_summary" in tag
    }
    return {**scalars, **texts}


def _timeless(value: Any) -> Any:
    """The value without seconds, wherever they are."""
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key != "seconds"}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _bits(tensor: Any) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(dtype=_bytes()).numpy().tobytes()).hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8
