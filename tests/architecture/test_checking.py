"""Signatures are checked while the tests run: a wrong shape or type is an error at the call."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from limner.schedule import Schedule
from limner.types import Latents
from tests.checking import known, names_arrays

KNOWN = {"Latents": Latents, "Float": Float, "Tensor": Tensor, "Literal": Literal}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [("Latents | None", True), ("Float[Tensor, 'rows 3']", True), ("tuple[Latents, ...]", True), (Latents, True),
     (list[Latents], True), ("Tensor", False), ("Literal['Latents']", False), (int, False), (None, False),
     ("NotYet | Latents", False)],
)  # fmt: skip
def test_arrays_are_seen_in_annotations(annotation: object, expected: bool) -> None:
    assert names_arrays(known(annotation, KNOWN)) is expected


@pytest.mark.parametrize(
    ("noise", "t"),
    [
        pytest.param(torch.randn(3, 4, 8, 8), torch.tensor([1, 2]), id="another batch"),
        pytest.param(torch.randn(2, 4, 8), torch.tensor([1, 2]), id="a dimension less"),
        pytest.param(torch.randn(2, 4, 8, 8), torch.tensor([1.0, 2.0]), id="another number format"),
        pytest.param("noise", torch.tensor([1, 2]), id="another type"),
    ],
)
def test_what_does_not_fit_the_signature_is_an_error_at_the_call(noise: Tensor, t: Tensor) -> None:
    schedule = Schedule(torch.linspace(0.9, 0.1, 10), "epsilon")
    with pytest.raises(BeartypeCallHintViolation):
        schedule.add_noise(torch.randn(2, 4, 8, 8), noise, t)


def test_a_class_is_checked_where_it_is_made() -> None:
    with pytest.raises(TypeCheckError):
        Schedule(torch.ones(2, 3), "epsilon")
