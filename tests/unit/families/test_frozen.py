"""The layers of a frozen UNet are torch's and diffusers' own in all but what they keep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from torch import Tensor, nn

from benchmarks.bare_floor import batch
from limner.families.frozen import LARGE_BYTES, Convolution, keep_less, stand_for

GEOMETRIES = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "down": {"kernel_size": 3, "stride": 2, "padding": 1},
    "1x1": {"kernel_size": 1, "bias": False},
    "groups": {"kernel_size": 3, "groups": 2, "dilation": 2},
}


def passes(layer: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, ...]]]:
    """Return what a layer makes, the gradient of its input, and the shapes of all memory that it kept."""
    x, kept = pixels.clone().requires_grad_(), dict[int, tuple[int, ...]]()

    def note(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = layer(x)
    out.float().square().sum().backward()
    assert x.grad is not None
    return out, x.grad, list(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_frozen_it_gives_the_same_and_keeps_no_input(name: str, dtype: torch.dtype) -> None:
    layer = nn.Conv2d(4, 6, **GEOMETRIES[name]).to(dtype).requires_grad_(False)
    pixels = torch.randn(2, 4, 9, 9).to(dtype)
    out, grad, kept = passes(layer, pixels)
    keep_less(layer)
    assert type(layer) is Convolution
    again = passes(layer, pixels)
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])
    assert tuple(pixels.shape) in kept
    assert tuple(pixels.shape) not in again[2]


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_what_learns_gets_its_gradient(part: str) -> None:
    layer = nn.Conv2d(4, 6, 3).requires_grad_(False)
    keep_less(layer)
    getattr(layer, part).requires_grad_(True)
    passes(layer, torch.randn(2, 4, 9, 9))
    learned = getattr(layer, part).grad
    assert learned is not None
    assert learned.abs().sum() > 0


def test_under_autocast_it_computes_as_torch_does() -> None:
    layer, pixels = nn.Conv2d(4, 6, 3).requires_grad_(False), torch.randn(2, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        out, grad, _ = passes(layer, pixels)
        keep_less(layer)
        again = passes(layer, pixels)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])


def normed(**more: Any) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(2, 6, **more), nn.SiLU(), nn.Conv2d(6, 4, 3))


CHEAP = {
    "norm and activation": (normed, (2, 6, 9, 9), [(2, 6, 9, 9)] * 3, [(2, 6, 9, 9)]),
    "gated unit": (lambda: GEGLU(6, 8), (2, 5, 6), [(2, 5, 8)] * 2, [(2, 5, 16)]),
    "wide gated unit": (lambda: GEGLU(641, 8), (2, 512, 641), [(2, 512, 8)] * 2, [(2, 512, 16)]),
}
"""By name: the layer, the shape of its input, and what it kept of activations and keeps."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CHEAP)
def test_what_is_cheap_is_made_again(name: str, dtype: torch.dtype) -> None:
    make, shape, before, after = CHEAP[name]
    layer, x = make().to(dtype).requires_grad_(False), torch.randn(shape).to(dtype)
    out, grad, kept = passes(layer, x)
    keep_less(layer)
    again = passes(layer, x)
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])
    of_rows = [[one for one in shapes if one[0] == 2 and len(one) > 2] for shapes in (kept, again[2])]
    assert of_rows == [before, after]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_normed", [False, True])
def test_a_large_gated_unit_is_projected_again_in_pieces(is_normed: bool, dtype: torch.dtype) -> None:
    layer = nn.Sequential(nn.LayerNorm(64) if is_normed else nn.Identity(), GEGLU(64, 8))
    layer.to(dtype).requires_grad_(False)
    x = torch.randn(2, 8192, 64).to(dtype)
    assert x.nbytes >= 2 * LARGE_BYTES
    out, grad, kept = passes(layer, x)
    keep_less(layer)
    sizes, again = list[torch.Size](), passes(layer, x)
    proj = layer[1].proj
    project = proj.forward
    proj.forward = lambda piece: sizes.append(piece.shape) or project(piece)
    passes(layer, x)
    assert torch.equal(out, again[0])
    torch.testing.assert_close(again[1], grad)  # the sums of a product of many rows have another order
    assert {shape[-1] for shape in kept} > {8}
    assert not {shape[-1] for shape in again[2]} & {8, 16}
    pieces = x.nbytes // LARGE_BYTES
    assert sizes == [torch.Size([2, 8192 // pieces, 64])] * 2 * pieces


def test_of_a_large_gated_unit_what_learns_gets_its_gradient() -> None:
    layer, x, learned = GEGLU(64, 8), torch.randn(2, 8192, 64), list[Tensor]()
    for _ in range(2):
        layer.zero_grad()
        layer(x).square().sum().backward()
        assert layer.proj.weight.grad is not None
        learned.append(layer.proj.weight.grad)
        keep_less(layer)
    assert torch.equal(*learned)


class Wrapping(nn.Linear):
    """A layer around another, whose weights it shows, as peft's are."""

    def __init__(self, layer: nn.Linear, learns: Tensor) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias, self.learns = layer.weight, layer.bias, learns

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + self.learns


@pytest.mark.parametrize("is_wrapped", [False, True], ids=["by a hook", "around it"])
def test_of_a_large_gated_unit_what_is_attached_gets_its_gradient(is_wrapped: bool) -> None:
    layer, x, learns = GEGLU(64, 8).requires_grad_(False), torch.randn(2, 8192, 64), torch.zeros(16, requires_grad=True)
    keep_less(layer)
    if is_wrapped:
        layer.proj = Wrapping(layer.proj, learns)
    else:
        layer.proj.register_forward_hook(lambda *args: args[2] + learns)
    passes(layer, x)
    assert learns.grad is not None
    assert learns.grad.abs().sum() > 0


@pytest.mark.parametrize(("device", "width"), [("cpu", 64), ("cuda", 16)])
def test_without_memory_a_large_gated_unit_keeps_what_it_would_on_the_device(device: str, width: int) -> None:
    layer = nn.Sequential(GEGLU(64, 8)).to("meta").requires_grad_(False)
    keep_less(layer)
    stand_for(layer, device)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(torch.empty(2, 8192, 64, device="meta", requires_grad=True))
    assert [shape for shape in kept if shape[0] == 2] == [(2, 8192, width)]  # the weight beside it


def test_an_activation_after_something_else_is_torchs_own() -> None:
    layer = nn.Sequential(nn.SiLU(), nn.GroupNorm(2, 6), nn.Identity()).requires_grad_(False)
    out, grad, _ = passes(layer, torch.ones(2, 6, 4, 4))
    keep_less(layer)
    again = passes(layer, torch.ones(2, 6, 4, 4))
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])


def test_a_norm_that_learns_gets_its_gradient() -> None:
    layer = normed().requires_grad_(False)
    layer[0].requires_grad_(True)
    pixels = torch.randn(2, 6, 9, 9)
    learned = []
    for _ in range(2):
        passes(layer, pixels)
        learned.append((layer[0].weight.grad, layer[0].bias.grad))
        layer.zero_grad()
        keep_less(layer)
    assert all(torch.equal(*pair) for pair in zip(*learned, strict=True))


@pytest.mark.parametrize("layer", [normed(), nn.Sequential(GEGLU(6, 8))], ids=["norm", "gated"])
def test_under_autocast_they_compute_as_they_did(layer: nn.Sequential) -> None:
    layer.requires_grad_(False)
    x = torch.randn(2, 6, 9, 9) if isinstance(layer[0], nn.GroupNorm) else torch.randn(2, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out, grad, _ = passes(layer, x)
        keep_less(layer)
        again = passes(layer, x)
    assert torch.equal(out, again[0])
    assert torch.equal(grad, again[1])


@pytest.mark.parametrize("base", ["random_sd15", "random_xl"])
def test_a_whole_unet_gives_the_same_and_keeps_less(base: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(base)
    unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.requires_grad_(False)
    told, numbers = batch(unet, 16), list[int]()
    rows = told.pop("sample")

    class Predicting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return unet(x, **told).sample

    found = []
    for _ in range(2):
        out, grad, kept = passes(Predicting(), rows)
        numbers.append(sum(map(math.prod, kept)))
        found.append((out, grad))
        keep_less(unet)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert numbers[1] < 0.7 * numbers[0]
