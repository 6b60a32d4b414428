"""What every family must do, on the embedded base and on one with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from limner.errors import UserError
from limner.families.family import Family
from limner.families.load import load, native_resolution
from limner.families.source import EMBEDDED
from limner.schedule import Schedule


@pytest.fixture(scope="module", params=["random_sd15", "random_xl", "random_refiner", *EMBEDDED])
def name(request: pytest.FixtureRequest) -> str:
    return request.param if request.param in EMBEDDED else str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def base(name: str) -> Family:
    return load(name, dtype=torch.float32, device="cpu")


def pixels(base: Family, rows: int = 2) -> torch.Tensor:
    side = base.native_resolution_px
    return torch.rand(rows, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_everything_is_frozen(base: Family) -> None:
    for module in (base.vae, *base.modules.values()):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_native_resolution_is_known_without_weights(base: Family, name: str) -> None:
    assert native_resolution(name) == base.native_resolution_px


def test_pixels_become_moments_and_latents_pixels(base: Family) -> None:
    moments = base.encode_pixels(pixels(base))
    side = base.native_resolution_px // base.pixels_per_latent
    assert moments.shape[:2] == (2, 2)
    assert moments.shape[-2:] == (side, side)
    assert moments.dtype == torch.float32
    assert bool((moments[:, 1] > 0).all())
    drawn = base.decode(base.scale_latents(moments[:, 0]))
    assert drawn.shape == pixels(base).shape
    assert float(drawn.abs().max()) <= 1


def test_decoding_is_that_of_the_vae_itself(base: Family) -> None:
    moments = base.encode_pixels(pixels(base))
    with torch.no_grad():
        expected = base.vae.decode(moments[:, 0]).sample.clamp(-1, 1)
    torch.testing.assert_close(base.decode(base.scale_latents(moments[:, 0])), expected, rtol=1e-4, atol=1e-4)


def test_text_is_that_of_the_stock_pipeline(base: Family) -> None:
    prompts = ["a red critter", "a photo of sks robot"]
    pipe = base.pipeline(scheduler_of(base))
    theirs = pipe.encode_prompt(prompts, device=torch.device("cpu"), num_images_per_prompt=1,
                                do_classifier_free_guidance=True)  # fmt: skip
    for ours, hidden, pooled in ((base.encode_text(prompts), 0, 2), (base.encode_text(["", ""]), 1, 3)):
        torch.testing.assert_close(ours.hidden, theirs[hidden])
        if ours.pooled is not None:
            torch.testing.assert_close(ours.pooled, theirs[pooled])


def scheduler_of(base: Family):
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(base.scheduler_config)


def test_a_long_prompt_is_read_to_its_end(base: Family) -> None:
    long = " ".join(["a red critter on a blue background"] * 20)
    assert base.token_count(long) > base.max_tokens
    one, other = base.encode_text([f"{long} robot"]), base.encode_text([f"{long} planet"])
    windows = -(-base.token_count(f"{long} robot") // base.max_tokens)
    assert one.hidden.shape[1] == windows * (base.max_tokens + 2)
    assert not torch.equal(one.hidden, other.hidden)


def test_prediction_has_the_shape_of_its_input(base: Family) -> None:
    side = base.native_resolution_px // base.pixels_per_latent
    x_t = torch.randn(2, base.unet.config.in_channels, side, side)
    with torch.no_grad():
        assert base.predict(x_t, torch.tensor([3, 900]), base.encode_text(["a", "b"])).shape == x_t.shape


def test_schedule_is_the_bases_own(base: Family) -> None:
    assert isinstance(base.schedule, Schedule)
    torch.testing.assert_close(base.schedule.alphas_cumprod, scheduler_of(base).alphas_cumprod)


def test_identity_changes_with_the_weights(base: Family, name: str) -> None:
    assert load(name, dtype=torch.float32, device="cpu").identity == base.identity
    other = load(name, dtype=torch.bfloat16, device="cpu")
    assert all(other.identity[part] != base.identity[part] for part in ("unet", "vae", "text"))


def test_embedded_latents_have_about_unit_variance() -> None:
    from PIL import Image

    from limner.families.source import ASSETS
    from limner.prepare.encode import to_pixels

    base = load("tiny", dtype=torch.float32, device="cpu")
    files = sorted((ASSETS / "demo").glob("*/*.png"))
    side = base.native_resolution_px
    batch = torch.cat([to_pixels(Image.open(f).convert("RGB").resize((side, side))) for f in files])
    latents = base.scale_latents(base.encode_pixels(batch)[:, 0])
    assert 0.7 < float(latents.std()) < 1.4


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"cross_attention_dim": 2048}, "is SDXL, and text_encoder_2/config.json is missing"),
        ("unet", {"in_channels": 9}, "inpainting"),
    ],
)
def test_bases_of_another_kind_are_refused(
    random_sd15: Path, tmp_path: Path, part: str, change: dict[str, int], message: str
) -> None:
    import shutil

    from diffusers import UNet2DConditionModel

    shutil.copytree(random_sd15, tmp_path / "other")
    config = UNet2DConditionModel.load_config(tmp_path / "other" / part)
    UNet2DConditionModel.from_config({**config, **change}).save_pretrained(tmp_path / "other" / part)
    with pytest.raises(UserError, match=message):
        load(str(tmp_path / "other"), dtype=torch.float32, device="cpu")
