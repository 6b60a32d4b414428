"""Contracts hold for every family: what asks for the random base runs on one of each."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session", params=["sd15", "xl"])
def random_base(request: pytest.FixtureRequest) -> Path:
    """Return the path of a very small base with random weights, one of each family after the other."""
    return request.getfixturevalue(f"random_{request.param}")
