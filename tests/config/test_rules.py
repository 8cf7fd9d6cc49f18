"""What is an address."""

from __future__ import annotations

import pytest

from p2o.config.rules import is_address


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("http://localhost:8000", True),
        ("https://api.example.com/v1", True),
        ("http://[::1]:8000/v1", True),
        ("foo", False),
        ("localhost:8000", False),
        ("http://", False),
        ("http://host:port", False),
        ("http://[::1", False),
        ("ftp://host", False),
    ],
)
def test_addresses(text: str, good: bool) -> None:
    assert is_address(text) == good
