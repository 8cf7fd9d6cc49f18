"""Lightning's own callbacks take part in a real job."""

from __future__ import annotations

import json
from collections.abc import Callable

from p2o.config import Config
from p2o.job import train


def test_a_callback_that_stops_the_training_ends_the_run(configure: Callable[..., Config]) -> None:
    """Whatever the accuracy is, it is below the threshold at which EarlyStopping gives up."""
    config = configure(
        *("+experiment=grpo", "debug=tiny", "trainer.threads=1", "trainer.progress=false", "trainer.epochs=3"),
        *("logger=csv", "callbacks=early_stopping", "+callbacks.early_stopping.divergence_threshold=2.0"),
    )
    result = train(config)
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert (summary["status"], summary["stop_reason"]) == ("stopped", "a callback stopped the training")
    assert len(summary["epochs"]) == 1
    assert (result.run_dir / "model" / "adapter_config.json").is_file()
    header = (result.run_dir / "csv" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"validation/accuracy", "policy/loss", "step"} <= set(header)
    assert train(config).already_done
