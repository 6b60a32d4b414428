"""Attention by matrix products of bfloat16 is torch's attention, to within what bfloat16 rounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from limner.families import attention
from limner.families.attention import MANY_TOKENS, Processor, attend, attend_faster
from limner.families.load import load

HEADS, WIDTH = 2, 40


def heads(tokens: int, spread: float, seed: int, rows: int = 1) -> Tensor:
    """Return queries, keys or values (rows, heads, tokens, width), laid out as a layer's projection lays them."""
    drawn = torch.randn(rows, tokens, HEADS, WIDTH, generator=torch.Generator().manual_seed(seed))
    return (spread * drawn).bfloat16().transpose(1, 2)


def seen_and_gradients(attend: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return what comes out, and the gradients of queries, keys and values."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
    out = attend(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(torch.bfloat16)
    out.backward(grad.to(dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def error(found: Tensor, true: Tensor) -> float:
    """Return the length of the difference, as a part of the truth's."""
    return float((found.double() - true).norm() / true.norm())


def same_bits(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it computed by our own on any processor."""
    monkeypatch.setattr(attention, "_multiplies_bfloat16", lambda: True)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("spread", [0.3, 1.0, 1.7, 2.5], ids=["all keys alike", "many keys", "some keys", "few keys"])
@pytest.mark.parametrize(("tokens", "keys"), [(2048, 2048), (600, 1300)])
def test_close_to_float64_as_torchs_own_is(tokens: int, keys: int, spread: float) -> None:
    inputs = [heads(n, spread, seed) for seed, n in enumerate((tokens, keys, keys))]
    true = seen_and_gradients(F.scaled_dot_product_attention, inputs, torch.float64)
    own = seen_and_gradients(attend, inputs, torch.bfloat16)
    torchs = seen_and_gradients(F.scaled_dot_product_attention, inputs, torch.bfloat16)
    assert [error(*pair) for pair in zip(own, true, strict=True)] == pytest.approx([0.0] * 4, abs=0.009)
    for ours, theirs, exact in zip(own, torchs, true, strict=True):
        assert ours.dtype == torch.bfloat16
        assert error(ours, exact) < 2.5 * error(theirs, exact)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("spread", [0.3, 1.7, 4.0])
@pytest.mark.parametrize(("tokens", "keys"), [(256, 256), (64, 77), (16, 9)])
def test_of_few_tokens_the_way_back_is_as_exact_as_torchs(tokens: int, keys: int, spread: float) -> None:
    inputs = [heads(n, spread, seed, rows=2) for seed, n in enumerate((tokens, keys, keys))]
    true = seen_and_gradients(F.scaled_dot_product_attention, inputs, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        own = seen_and_gradients(attend, inputs, torch.bfloat16)
    torchs = seen_and_gradients(F.scaled_dot_product_attention, inputs, torch.bfloat16)
    same_bits(own[0], torchs[0])
    assert not all(torch.equal(*pair) for pair in zip(own, torchs, strict=True)), "it is our own"
    for ours, theirs, exact in zip(own, torchs, true, strict=True):
        assert ours.dtype == torch.bfloat16
        assert error(ours, exact) < 1.1 * error(theirs, exact)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("tokens", [MANY_TOKENS, 64])
def test_what_it_keeps_can_be_made_again(tokens: int) -> None:
    inputs = [heads(tokens, 1.0, seed) for seed in range(3)]
    again = partial(checkpoint, attend, use_reentrant=False)
    kept, made = (seen_and_gradients(way, inputs, torch.bfloat16) for way in (attend, again))
    assert all(torch.equal(*pair) for pair in zip(kept, made, strict=True))


@pytest.mark.usefixtures("everywhere")
def test_a_key_that_draws_all_queries_is_found() -> None:
    """A score far from all others, which mean and variance tell nothing of."""
    query, key, value = (heads(1024, 1.0, seed) for seed in range(3))
    query[..., 0], key[:, :, 7] = 6.0, 0.0
    key[:, :, 7, 0] = 10 * WIDTH**0.5 / 6  # a score of 10 among 1024 of about 0
    true = seen_and_gradients(F.scaled_dot_product_attention, [query, key, value], torch.float64)
    own = seen_and_gradients(attend, [query, key, value], torch.bfloat16)
    assert [error(*pair) for pair in zip(own, true, strict=True)] == pytest.approx([0.0] * 4, abs=0.04)


@pytest.mark.usefixtures("everywhere")
def test_scores_beyond_exponentials_are_left_to_torch() -> None:
    query, key, value = (heads(MANY_TOKENS, 1.0, seed) for seed in range(3))
    query[..., 0], key[:, :, 7, 0] = 100.0, 100.0  # a score of 1,600
    expected = F.scaled_dot_product_attention(query, key, value)
    assert expected.isfinite().all()
    same_bits(attend(query, key, value), expected)


@pytest.mark.usefixtures("everywhere")
def test_rows_do_not_see_each_other() -> None:
    inputs = [heads(MANY_TOKENS, 1.0, seed, rows=2) for seed in range(3)]
    together = seen_and_gradients(attend, inputs, torch.bfloat16)[0]
    for row in range(2):
        same_bits(attend(*(x[row : row + 1] for x in inputs)), together[row : row + 1])


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(
    ("tokens", "dtype"),
    [(MANY_TOKENS, torch.float32), (MANY_TOKENS - 1, torch.bfloat16)],
    ids=["float32", "some tokens"],
)
def test_else_it_is_torchs(tokens: int, dtype: torch.dtype) -> None:
    query, key, value = (heads(tokens, 1.0, seed).to(dtype) for seed in range(3))
    same_bits(attend(query, key, value), F.scaled_dot_product_attention(query, key, value))


def test_layers_give_what_diffusers_own_processor_gives(random_base: Path) -> None:
    """In a UNet, of states and prompts, and in a VAE, of pixels: bit for bit in float32."""
    family = load(str(random_base), dtype=torch.float32, device="cpu")
    layers = [layer for part in (family.unet, family.vae) for layer in part.modules() if isinstance(layer, Attention)]
    assert layers
    for layer in layers:
        assert isinstance(layer.processor, Processor)
        assert layer.to_k is not None
        width = layer.to_q.in_features
        x = torch.randn(2, width, 4, 4) if layer.group_norm is not None else torch.randn(2, 16, width)
        told = None if layer.to_k.in_features == width else torch.randn(2, 9, layer.to_k.in_features)
        same_bits(layer(x, told), AttnProcessor2_0()(layer, x, told))


def test_a_mask_is_heeded() -> None:
    layer = Attention(8, heads=2, dim_head=4)
    own = layer.processor
    attend_faster(layer)
    x, mask = torch.randn(1, 5, 8), torch.zeros(1, 1, 5)
    mask[..., 2] = -torch.inf
    masked = layer(x, attention_mask=mask)
    assert not torch.equal(masked, layer(x))
    same_bits(masked, own(layer, x, attention_mask=mask))


def test_a_processor_of_its_own_stays() -> None:
    class Other:
        def __call__(self, attn: Attention, hidden_states: Tensor, **_: object) -> Tensor:
            return hidden_states

    layer = Attention(8, heads=2, dim_head=4, processor=Other())  # pyright: ignore[reportArgumentType]
    attend_faster(layer)
    assert isinstance(layer.processor, Other)
