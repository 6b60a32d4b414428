"""The stacked LoRA layer: padding, both forms of its convolution, parity with peft."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from limner.adapters.adapter import SlotSettings
from limner.adapters.lora import LoRA, attach_lora
from limner.adapters.lora_layer import LoRALayer
from limner.errors import UserError
from limner.families.family import Family
from limner.families.frozen import keep_less


def layer_of(target: nn.Linear | nn.Conv2d, ranks: list[int], alphas: list[float] | None = None) -> LoRALayer:
    layer = LoRALayer(target, ranks, alphas or [float(2 * r) for r in ranks])
    draws = torch.Generator().manual_seed(0)
    for slot in range(len(ranks)):
        layer.initialise(slot, draws)
        layer.views(slot)["B"].copy_(torch.randn(layer.views(slot)["B"].shape, generator=draws))
    return layer


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_dense_and_grouped_convolutions_agree(kernel: int, stride: int) -> None:
    layer = layer_of(nn.Conv2d(6, 5, kernel, stride=stride, padding=kernel // 2), [2, 3, 1])
    x = torch.randn(6, 6, 8, 8)
    torch.testing.assert_close(layer._dense(x, layer.A, layer.geometry), layer._grouped(x, layer.A, layer.geometry))


def test_many_ranks_take_the_grouped_form(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(nn.Conv2d(6, 5, 3, padding=1), [40, 40])
    monkeypatch.setattr(layer, "_dense", None)
    x = torch.randn(4, 6, 8, 8)
    added = layer(torch.zeros(4, 5, 8, 8), x, 1.0, None)
    expected = [nn.functional.conv2d(x[2 * i : 2 * i + 2], layer.delta_weight(i), padding=1) for i in range(2)]
    torch.testing.assert_close(added, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8), (2, 2, 3, 8)])
def test_one_slot_in_few_kernels_is_one_of_many(shape: tuple[int, ...]) -> None:
    target = nn.Linear(8, 7).requires_grad_(False)
    layer, x = layer_of(target, [3]), torch.randn(shape)
    made, grads = list[Tensor](), list[Tensor]()
    for slot_of_block in (None, torch.tensor([0])):
        layer.zero_grad()
        out = layer(target(x), x, 0.7, slot_of_block)
        out.square().sum().backward()
        made.append(out.detach())
        grads.append(torch.cat([layer.A.grad.flatten(), layer.B.grad.flatten()]))
    torch.testing.assert_close(made[0], target(x) + 0.7 * x @ layer.delta_weight(0).T)
    torch.testing.assert_close(made[1], made[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("alphas", [[2.0, 3.0], [1.0, 1.5], [1.0, 5.0]], ids=["of 1", "one scale", "of their own"])
@pytest.mark.parametrize("blocks", [None, [1, 0, 1]], ids=["every slot", "blocks of slots"])
@pytest.mark.parametrize("kernel", [0, 1, 3], ids=["linear", "one pixel", "three pixels"])
def test_each_row_gets_what_its_own_slot_adds(kernel: int, blocks: list[int] | None, alphas: list[float]) -> None:
    target = nn.Conv2d(6, 5, kernel, padding=kernel // 2) if kernel else nn.Linear(6, 5)
    layer = layer_of(target.requires_grad_(False), [2, 3], alphas)
    slots = blocks or [0, 1]
    x = torch.randn(2 * len(slots), *((6, 4, 7) if kernel else (9, 6)))
    deltas = [layer.delta_weight(slot).detach().requires_grad_() for slot in range(2)]
    apply = partial(nn.functional.conv2d, padding=kernel // 2) if kernel else nn.functional.linear
    expected = target(x) + torch.cat(
        [0.7 * apply(rows, deltas[slot]) for rows, slot in zip(x.split(2), slots, strict=True)]
    )
    added = layer(target(x), x, 0.7, torch.tensor(blocks) if blocks else None)
    torch.testing.assert_close(added, expected)
    for out in (added, expected):
        out.sin().sum().backward()
    for slot, rank in enumerate(layer.ranks):
        A, B, whole = layer.A[slot, :rank].flatten(1), layer.B[slot, :, :rank], deltas[slot].grad
        assert whole is not None
        scale = alphas[slot] / rank
        torch.testing.assert_close(layer.A.grad[slot, :rank].flatten(1), scale * B.T @ whole.flatten(1))
        torch.testing.assert_close(layer.B.grad[slot, :, :rank], scale * whole.flatten(1) @ A.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("ranks", "shape"), [([3], (2, 4096, 64)), ([3, 5], (4, 64, 64, 64))])
def test_of_a_frozen_norm_it_keeps_nothing(ranks: list[int], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    norm, target = nn.LayerNorm(64), nn.Linear(64, 32)
    frozen = nn.Sequential(norm, target).to(dtype).requires_grad_(False)
    layer, source = layer_of(target, ranks), torch.randn(shape).to(dtype).requires_grad_()
    found, kept = list[list[Tensor]](), set[int]()

    def note(tensor: Tensor) -> Tensor:
        kept.add(tensor.data_ptr())
        return tensor

    for _ in range(2):
        layer.zero_grad()
        source.grad = None
        kept.clear()
        x = norm(source)
        out = target(x)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            added = layer(out, x, 0.7, None)
        added.float().square().sum().backward()
        found.append([added.detach(), source.grad, layer.A.grad, layer.B.grad])
        assert (x.data_ptr() in kept) == (len(found) == 1)
        keep_less(frozen)
    assert x.normed_from == (norm, source)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_padding_of_a_smaller_rank_stays_zero() -> None:
    layer = layer_of(nn.Linear(8, 7), [2, 5])
    views = [layer.views(i) for i in range(2)]
    optimizers = [torch.optim.AdamW(v.values(), lr=0.1, weight_decay=0.1) for v in views]
    for _ in range(3):
        layer.zero_grad(set_to_none=False)
        layer(torch.zeros(4, 3, 7), torch.randn(4, 3, 8), 1.0, None).square().sum().backward()
        assert not layer.A.grad[0, 2:].any()
        assert not layer.B.grad[0, :, 2:].any()
        for optimizer in optimizers:
            optimizer.step()
    assert not layer.A[0, 2:].any()
    assert not layer.B[0, :, 2:].any()


def test_views_share_storage_and_gradient() -> None:
    layer = layer_of(nn.Linear(4, 4), [2, 2])
    view = layer.views(1)["A"]
    view.fill_(3.0)
    assert bool((layer.A[1] == 3).all())
    layer(torch.zeros(2, 1, 4), torch.ones(2, 1, 4), 1.0, None).sum().backward()
    assert view.grad is not None
    assert torch.equal(view.grad, layer.A.grad[1])


def test_rows_that_cannot_be_split_are_refused() -> None:
    layer = layer_of(nn.Linear(4, 4), [2, 2])
    with pytest.raises(ValueError, match="3 rows cannot be split over 2 slots"):
        layer(torch.zeros(3, 4), torch.ones(3, 4), 1.0, None)


def test_patterns_that_match_nothing_are_named(family: Family) -> None:
    with pytest.raises(UserError, match=r"'\*.nope' matches none"):
        LoRA(targets=("*.to_q", "*.nope")).attach(family, [SlotSettings(seed=0)])
    with pytest.raises(UserError, match="Use one of attention, transformer, all"):
        LoRA(targets="attn").attach(family, [SlotSettings(seed=0)])


def test_lora_for_another_base_is_refused(family: Family) -> None:
    adapter = LoRA(rank=2).attach(family, [SlotSettings(seed=0)])
    state = adapter.state_dict()
    adapter.detach()
    name = next(iter(state)).rpartition(".")[0]
    other = {k.replace(name, "unet.nowhere.to_q"): v for k, v in state.items()}
    with pytest.raises(UserError, match=r"layers are in it \(first that is not: unet.nowhere.to_q\)"):
        attach_lora(family.modules, other)
    wide = {**state, f"{name}.lora_A": torch.zeros(2, 99)}
    with pytest.raises(UserError, match=f"{name} is .* there, and .* in the LoRA"):
        attach_lora(family.modules, wide)
