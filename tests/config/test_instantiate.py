"""Callbacks and loggers by their names in the configuration."""

from __future__ import annotations

from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping

from p2o.config import ConfigError
from p2o.config.instantiate import instantiate_nodes

STOP = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "validation/accuracy", "patience": 2}


def made(node: Any, allow: tuple[str, ...] = ()) -> list[Callback]:
    return instantiate_nodes({"mine": node}, "callbacks", Callback, allow)


def test_a_class_of_lightning_gets_its_arguments() -> None:
    (stop,) = made(STOP)
    assert isinstance(stop, EarlyStopping)
    assert (stop.monitor, stop.patience) == ("validation/accuracy", 2)


def test_another_package_has_to_be_allowed() -> None:
    node = {"_target_": "collections.OrderedDict"}
    with pytest.raises(ConfigError, match=r"callbacks\.mine\._target_=collections\.OrderedDict.*allow=\[coll"):
        made(node)
    with pytest.raises(ConfigError, match="is a OrderedDict, not a Callback"):
        made(node, ("collections",))


def test_a_nested_class_of_another_package_is_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"os\.system"):
        made(STOP | {"patience": {"_target_": "os.system", "command": "true"}})


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"monitor": "loss"}, "callbacks.mine has no _target_"),
        (None, "callbacks.mine has no _target_"),
        ({"_target_": "lightning.pytorch.callbacks.Nothing"}, "callbacks.mine: .*Nothing"),
        ({"_target_": "lightning.pytorch.callbacks.EarlyStopping"}, "callbacks.mine: .*monitor"),
    ],
)
def test_what_cannot_be_made_is_named(node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(node)
