"""Frozen weights in fewer bits: how near they are, what a layer does with them, what is kept, and what is refused."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from limner.families.family import Family
from limner.families.load import fingerprints, load, weights_of
from limner.families.source import ASSETS
from limner.families.storage import Stored, give, keep, pack, pieces
from tests.unpacked import unpacked

ERROR = {"int8": 0.01, "float8": 0.03, "nf4": 0.1}
"""How far a packed weight may be from the weight, as a share of its length; normally distributed numbers."""
PREDICTION_ERROR = {"int8": 0.02, "float8": 0.065, "nf4": 0.27}
"""How far the embedded base's prediction for noisy pictures may be from that of float32, as a share of its length;
measured: 0.016, 0.053, 0.231, and 0.012 for bfloat16."""
BITS = {"int8": 8, "float8": 8, "nf4": 4}
FORMS = pytest.mark.parametrize("form", BITS)
LAYERS = pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Linear(50, 37), torch.randn(2, 5, 50, generator=torch.Generator().manual_seed(1))),
        (lambda: nn.Linear(64, 32, bias=False), torch.randn(3, 64, generator=torch.Generator().manual_seed(1))),
        (lambda: nn.Conv2d(24, 40, 3, 2, 1), torch.randn(2, 24, 9, 9, generator=torch.Generator().manual_seed(1))),
    ],
    ids=["linear", "linear-no-bias", "convolution"],
)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def stored(layer: nn.Linear | nn.Conv2d, form: Any) -> nn.Linear | nn.Conv2d:
    own = copy.copy(layer)
    own._parameters = {**layer._parameters, "weight": nn.Parameter(Stored(pack(layer.weight, form)), False)}
    return own


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(40, 24, 3, 3), (37, 50)])
def test_a_weight_is_near_what_it_was_and_takes_its_bits(form: Any, dtype: torch.dtype, shape: Any) -> None:
    weight = normal(*shape, dtype=dtype)
    packed = Stored(pack(weight, form))
    assert (packed.shape, packed.dtype, packed.device) == (weight.shape, dtype, weight.device)
    assert float((packed.float() - weight.float()).norm() / weight.float().norm()) < ERROR[form]
    numbers, scales = pieces(packed)
    assert numbers.nbytes * 8 <= BITS[form] * (weight.numel() + 64)
    assert scales.numel() <= max(shape[0], weight.numel() // 64 + 1)


@FORMS
def test_zeros_stay_zeros(form: Any) -> None:
    assert not bool(Stored(pack(torch.zeros(8, 16), form)).any())


def test_a_float8_is_what_torch_makes_of_its_bits() -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    every = bits[bits % 128 != 127].view(torch.float8_e4m3fn)  # all that are numbers
    packed = pack(torch.ones(1, len(every)), "float8")
    packed.numbers.view(torch.uint8).copy_(every.view(torch.uint8))
    assert torch.equal(packed.plain()[0], every.float() * packed.scales[0])


@FORMS
@LAYERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_computes_with_what_it_unpacks_and_keeps_nothing(
    form: Any, make: Any, x: Tensor, dtype: torch.dtype
) -> None:
    layer = make().to(dtype).requires_grad_(False)
    packed = stored(layer, form)
    layer.weight = copy.deepcopy(packed.weight)
    kept: list[Tensor] = []

    def run(of: nn.Module) -> tuple[Tensor, Tensor]:
        given = x.to(dtype).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = of(given)
            out += 1  # as some adapters do
        return out.detach(), torch.autograd.grad(out.float().square().sum(), given)[0]

    there, back = run(layer)
    kept.clear()
    own_there, own_back = run(packed)
    assert torch.equal(own_there, there)
    assert torch.equal(own_back, back)
    assert kept == []


@FORMS
def test_it_cannot_be_written_to_and_a_deep_copy_can(form: Any) -> None:
    layer = stored(nn.Linear(8, 4), form)
    for write in (lambda: layer.weight.data.add_(1), lambda: layer.weight.copy_(torch.ones(4, 8))):
        with pytest.raises(RuntimeError, match=f"on a frozen weight that is stored as {form}"):
            write()
    own = copy.deepcopy(layer).weight
    assert type(own) is nn.Parameter
    with torch.no_grad():
        own.add_(1)
    assert not torch.equal(own, layer.weight)


def test_it_is_given_back_and_filled_again() -> None:
    weight = Stored(pack(normal(8, 64), "nf4"))
    value = weight.packed.plain()
    again = Stored(weight.packed)
    give(weight, None)
    assert [piece.untyped_storage().nbytes() for piece in pieces(weight)] == [0, 0]
    give(weight, again)
    assert torch.equal(weight.packed.plain(), value)


def test_what_stays_as_it_is() -> None:
    names = {
        "unet": ["conv_in.weight", "conv_out.weight", "time_embedding.linear_1.weight", "a.to_q.bias"],
        "vae": ["decoder.conv.weight"],
        "text_encoder": ["embeddings.token_embedding.weight"],
    }
    for part, own in names.items():
        assert all(type(keep(part, name, torch.ones(4, 4), "int8")) is Tensor for name in own)
    assert type(keep("unet", "norm.weight", torch.ones(4), "int8")) is Tensor
    assert isinstance(keep("unet", "a.to_q.weight", torch.ones(4, 4), "int8"), Stored)
    assert type(keep("unet", "a.to_q.weight", torch.ones(4, 4), "as_computed")) is Tensor


@FORMS
def test_a_base_computes_as_the_same_base_unpacked_and_needs_no_more_for_it(random_base: Path, form: Any) -> None:
    def predict(base: Family) -> tuple[Tensor, Tensor, int]:
        held = {weight.untyped_storage()._cdata for weight in base.weights() if not isinstance(weight, Stored)}
        kept: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            storage = t.untyped_storage()
            if storage._cdata not in held:
                kept[storage._cdata] = storage.nbytes()
            return t

        x = normal(2, 4, 16, 16).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = base.predict(x, torch.tensor([5, 700]), base.encode_text(["a", "a robot"]))
        grad = torch.autograd.grad(out.square().sum(), x)[0]
        return out.detach(), grad, sum(kept.values())

    named: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "storage": form}
    base = load(str(random_base), **named)
    packed = [name for name, weight in base.unet.named_parameters() if isinstance(weight, Stored)]
    assert len(packed) > 50
    assert any(isinstance(weight, Stored) for weight in base.encoders["text_encoder"].model.parameters())
    whole = load(str(random_base), **named)
    assert fingerprints(base) == base.identity == whole.identity
    (there, back, kept), (whole_there, whole_back, whole_kept) = predict(base), predict(unpacked(whole))
    assert torch.equal(there, whole_there)
    assert torch.equal(back, whole_back)
    assert kept <= whole_kept


@FORMS
def test_the_prediction_is_near_that_of_float32(form: Any) -> None:
    exact_base = load("tiny", dtype=torch.float32, device="cpu")
    files = sorted((ASSETS / "demo" / "critter").glob("*.png"))[:4]
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB").resize((64, 64))) for file in files])
    x_0 = exact_base.scale_latents(
        exact_base.encode_pixels(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)[:, 0]
    )
    t = torch.tensor([50, 300, 600, 900])
    kept = exact_base.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = kept.sqrt() * x_0 + (1 - kept).sqrt() * normal(*x_0.shape)

    def predict(base: Family) -> Tensor:
        with torch.no_grad():
            return base.predict(x_t, t, base.encode_text(["a photo of a critter"] * 4))

    exact, packed = (
        predict(one) for one in (exact_base, load("tiny", dtype=torch.float32, device="cpu", storage=form))
    )
    assert 0 < float((packed - exact).norm() / exact.norm()) < PREDICTION_ERROR[form]


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_weights_are_packed_one_by_one_as_they_are_read(random_base: Path, part: str) -> None:
    """Beside what is packed one whole weight is there at a time."""
    module = load(str(random_base), dtype=torch.float32, device="cpu").unet
    whole: list[weakref.ref[Tensor]] = []

    def spy(name: str, tensor: Tensor) -> Tensor:
        assert sum(one() is not None for one in whole) == 0
        packed = keep(part, name, tensor, "int8")
        if isinstance(packed, Stored):
            whole.append(weakref.ref(tensor))
        return packed

    weights_of(random_base, "sd15", part, module, dtype=torch.float32, device="cpu", keep=spy)
    assert len(whole) > 5


def test_a_vaes_encoder_has_its_channels_innermost_and_gives_what_diffusers_gives(random_base: Path) -> None:
    """And its decoder has not: there a picture is bit for bit diffusers'."""
    vae = load(str(random_base), dtype=torch.float32, device="cpu").vae
    theirs = AutoencoderKL.from_pretrained(random_base, subfolder="vae").eval()
    pixels, latents = normal(1, 3, 32, 32), normal(1, vae.config.latent_channels, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(vae.encode(pixels).latent_dist.mean, theirs.encode(pixels).latent_dist.mean)
        assert torch.equal(vae.decode(latents).sample, theirs.decode(latents).sample)
    assert vae.encoder.conv_out.weight.is_contiguous(memory_format=torch.channels_last)
    assert vae.decoder.conv_in.weight.is_contiguous()
