"""The pretraining of tiny-xl: what a view is told is true of it, and the UNet begins as the base's."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pretraining import unet, views, whitening, xl


def large() -> Tensor:
    """Make a picture of 128 pixels with detail at every scale."""
    return torch.rand(1, 3, views.LARGE_PX, views.LARGE_PX) * 2 - 1


def roughness(pixels: Tensor) -> float:
    return float((pixels[..., 1:] - pixels[..., :-1]).abs().mean())


def test_what_a_view_is_told_is_true_of_it() -> None:
    picture, kinds = large(), set[str]()
    whole = views.resized(picture, views.SIDE_PX)
    for _ in range(30):
        pixels, (height, width, top, left, *target) = views.sized_or_cropped(picture)
        assert (pixels.shape, height, target) == (whole.shape, width, [views.SIDE_PX] * 2)
        top, left = int(top), int(left)
        if height < views.SIDE_PX:
            kinds.add("was smaller")
            assert roughness(pixels) < roughness(whole)
        elif top or left:
            kinds.add("cropped")
            assert torch.equal(pixels, picture[..., top : top + views.SIDE_PX, left : left + views.SIDE_PX])
        else:
            kinds.add("whole")
            assert torch.equal(pixels, whole)
    assert kinds == {"was smaller", "cropped", "whole"}


def test_the_score_falls_as_the_picture_gets_worse() -> None:
    picture = large()
    whole = views.resized(picture, views.SIDE_PX)
    seen = [views.scored(picture) for _ in range(30)]
    errors = [(told[-1], float((pixels - whole).abs().mean())) for pixels, told in seen]
    assert all(views.WORST_SCORE <= score <= views.BEST_SCORE for score, _ in errors)
    assert {error == 0 for score, error in errors if score >= views.CLEAN_SCORE} == {True}
    worse = torch.tensor([pair for pair in errors if pair[1] > 0])
    assert len(worse) > 5
    assert torch.corrcoef(worse.T)[0, 1] < -0.9


@torch.no_grad()
def test_the_unet_begins_as_that_of_the_base_whatever_it_is_told(random_sd15: Path) -> None:
    base = UNet2DConditionModel.from_pretrained(random_sd15 / "unet")
    new = xl.build(random_sd15, context=2 * 32, told=6)
    fit = torch.cat([torch.eye(32), torch.zeros(32, 32)])  # the first encoder's states are those that the base knows
    new.load_state_dict(xl.starting_weights(new, base.state_dict(), fit)["weights"])
    x_t, t, known = torch.randn(2, 4, 24, 24), torch.tensor([10, 900]), torch.randn(2, 32, 32)
    hidden = torch.cat([known, torch.randn(2, 32, 32)], -1)
    told = {"text_embeds": torch.randn(2, xl.POOLED), "time_ids": torch.rand(2, 6) * 96}
    made = new(x_t, t, hidden, added_cond_kwargs=told).sample
    torch.testing.assert_close(made, base(x_t, t, known).sample, rtol=1e-4, atol=1e-5)


def test_states_of_new_encoders_are_fitted_to_the_known_ones() -> None:
    new, way = torch.randn(20, 32, 6), torch.randn(6, 4)
    torch.testing.assert_close(xl.fitted(new @ way, new), way, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_whitened_and_folded_back_the_unet_is_the_same(random_sd15: Path) -> None:
    """Exact in both directions: white weights on white states, and plain weights again on plain ones."""
    base = UNet2DConditionModel.from_pretrained(random_sd15 / "unet")
    mixing = torch.randn(32, 32, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -2, 32)
    states = torch.randn(64, 8, 32) @ mixing.T + 2
    white = whitening.fit(states)
    assert 0.5 < float(white.apply(states).std((0, 1)).mean()) <= 1.01
    x_t, t = torch.randn(2, 4, 16, 16), torch.tensor([10, 900])
    plain = {name: weight.clone() for name, weight in base.state_dict().items()}
    expected = base(x_t, t, states[:2]).sample
    base.load_state_dict(white.to_white(plain))
    torch.testing.assert_close(base(x_t, t, white.apply(states[:2])).sample, expected, atol=1e-4, rtol=1e-4)
    base.load_state_dict(white.to_plain(white.to_white(plain)))
    torch.testing.assert_close(base(x_t, t, states[:2]).sample, expected, atol=1e-4, rtol=1e-4)


def test_each_named_part_has_its_share_whatever_its_size() -> None:
    """The weights of a picture have a mean of 1: an even error costs the same with and without parts."""
    parts = torch.zeros(1, 3, 16, 16)
    parts[:, 0, 4:8, 4:8], parts[:, 1, 0, :4] = 1, 1  # the third is absent

    class Wrong(torch.nn.Module):
        dtype = torch.float32

        def forward(self, x_t: Tensor, *_: object, **__: object) -> object:
            return type("Made", (), {"sample": torch.zeros_like(x_t)})

    alphas = torch.full((10,), 1e-9)  # v is -x_0 then
    even = torch.ones(1, 4, 16, 16)
    large, small = (parts[:, role, None].expand(1, 4, 16, 16) for role in (0, 1))
    loss = [
        float(unet.v_loss(Wrong(), unet.Batch(x_0, torch.zeros(1), parts=parts), alphas))  # pyright: ignore[reportArgumentType]
        for x_0 in (even, large, small)
    ]
    own = unet.PART_WEIGHT
    expected = [1, *((area + own) / (1 + 2 * own) for area in (16 / 256, 4 / 256))]
    assert torch.allclose(torch.tensor(loss), torch.tensor(expected), atol=1e-3)


def test_the_xl_unet_learns_from_views_that_are_told_of(random_sd15: Path) -> None:
    made = xl.build(random_sd15, context=64, told=6)
    seen = views.Views(torch.randn(5, 4, 24, 24), torch.full((4,), 0.01), torch.rand(5, 6) * 96)
    captions = {"which": torch.tensor([[1, 2], [1, 2], [2, 2], [1, 1], [2, 1]]), "hidden": torch.randn(3, 8, 64),
                "pooled": torch.randn(3, xl.POOLED)}  # fmt: skip
    batch = xl.drawing(seen, captions, torch.zeros(1))()
    loss = unet.v_loss(made, unet.Batch(batch.x_0, batch.hidden.float(), batch.added), unet.scheduler().alphas_cumprod)
    loss.backward()
    assert batch.x_0.shape == (unet.BATCH, 4, 24, 24)
    assert loss.item() > 0
    assert all(p.grad is not None for name, p in made.named_parameters() if "attn2" in name)
