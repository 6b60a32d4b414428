"""The types of Limner are checked while the tests run, shapes among them: what is wrong is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from limner.adapters.adapter import SlotSettings
from limner.metrics import distances
from limner.metrics.distances import frechet_distance, gaussian
from limner.seeds import generator
from tests.typed import checked

ROWS, COLUMNS = torch.zeros(3, 4), torch.zeros(2, 4)


@pytest.mark.parametrize("wrong", [lambda: generator(0.5), lambda: SlotSettings(seed="0")])  # type: ignore[arg-type]
def test_a_wrong_type_is_refused(wrong: Any) -> None:
    with pytest.raises(BeartypeCallHintViolation):
        wrong()


def test_shapes_that_do_not_go_together_are_refused() -> None:
    assert gaussian(ROWS, COLUMNS).shape == (3, 2)
    with pytest.raises(TypeCheckError, match="dim"):
        gaussian(ROWS, COLUMNS[:, :3])
    with pytest.raises(TypeCheckError):
        frechet_distance(ROWS, ROWS[0])  # by a name for a shape
    with pytest.raises(TypeCheckError):
        distances._roots(torch.zeros(2, 3))


def test_what_a_function_returns_is_checked() -> None:
    def says(what: int) -> str:
        return what  # type: ignore[return-value]

    with pytest.raises(BeartypeCallHintViolation):
        checked(says)(1)
