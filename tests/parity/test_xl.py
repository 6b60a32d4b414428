"""SDXL is what stock diffusers makes of the same weights: its loss and gradients, its pictures, its published names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as convert
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from limner.adapters.full import Full
from limner.export.layout import original_weights
from limner.export.single_file import write_single_file
from limner.families import recognise
from limner.families.load import load
from limner.families.source import ASSETS
from limner.generate.draw import Request, Sampling, draw, draw_batch
from limner.rundir import read_json
from tests.parity.test_methods import Two, drawn, first_step

CAPTIONS = ["a photo of <it> critter", "a red robot"]
UNET = "model.diffusion_model."
PUBLISHED = {
    "sdxl": {
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        f"{UNET}input_blocks.4.1.proj_in.weight": (640, 640),
        f"{UNET}input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
        f"{UNET}middle_block.1.transformer_blocks.9.ff.net.2.weight": (1280, 5120),
        f"{UNET}output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        f"{UNET}output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        f"{UNET}output_blocks.8.0.skip_connection.weight": (320, 640, 1, 1),
        "conditioner.embedders.1.model.positional_embedding": (77, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_fc.bias": (5120,),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
        "conditioner.embedders.1.model.text_projection": (1280, 1280),
    },
    "sdxl-refiner": {
        f"{UNET}label_emb.0.0.weight": (1536, 2560),
        f"{UNET}input_blocks.4.1.transformer_blocks.3.attn2.to_k.weight": (768, 1280),
        f"{UNET}middle_block.1.proj_out.weight": (1536, 1536),
        f"{UNET}output_blocks.11.0.skip_connection.weight": (384, 768, 1, 1),
        "conditioner.embedders.0.model.token_embedding.weight": (49408, 1280),
    },
}
"""Some tensors of the published files, one of each kind and place."""
PARAMETERS = {"sdxl": 2_567_463_684, "sdxl-refiner": 2_259_526_660}


@pytest.fixture(params=["sdxl", "sdxl-refiner"])
def base(request: pytest.FixtureRequest, random_xl: Path, random_refiner: Path) -> Path:
    return {"sdxl": random_xl, "sdxl-refiner": random_refiner}[request.param]


def test_loss_and_gradients_of_all_weights_are_those_of_diffusers(base: Path) -> None:
    family = load(str(base), dtype=torch.float32, device="cpu")
    source = Two(family)
    loss, gradients = first_step(family, Full(text_encoder=True), source)

    pipe: Any = DiffusionPipeline.from_pretrained(base)
    modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for module in modules.values():
        module.requires_grad_(True)
    hidden, _, pooled, _ = pipe.encode_prompt(
        CAPTIONS, device=torch.device("cpu"), num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    sizes = [64, 64, 0, 0, 6.0] if pipe.text_encoder is None else [64, 64, 0, 0, 64, 64]
    expected = reference_loss(pipe, source, hidden, pooled, torch.tensor([sizes, sizes]))
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, gradient in gradients.items():
        part, _, path = name.partition(".")
        wanted = modules[part].get_parameter(path).grad
        torch.testing.assert_close(
            gradient, torch.zeros_like(gradient) if wanted is None else wanted, rtol=1e-4, atol=1e-7
        )


def reference_loss(pipe: Any, source: Two, hidden: Tensor, pooled: Tensor, time_ids: Tensor) -> Tensor:
    """Compute the loss with diffusers alone: v-prediction, instance loss + half of the class loss."""
    x_0, noise, t = drawn(source, pipe.vae.config.scaling_factor)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    added = {"text_embeds": pooled, "time_ids": time_ids.float()}
    made = pipe.unet(scheduler.add_noise(x_0, noise, t), t, hidden, added_cond_kwargs=added).sample
    target = scheduler.get_velocity(x_0, noise, t)
    return F.mse_loss(made[:1], target[:1]) + 0.5 * F.mse_loss(made[1:], target[1:])


def test_a_single_file_is_loaded_as_it_was_written(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single file carries no configuration; here the small models' are put where SDXL's published ones are."""
    monkeypatch.setattr(recognise, "SKELETONS", (base,))
    family = load(str(base), dtype=torch.float32, device="cpu")
    file = write_single_file(family, tmp_path / "model.safetensors", dtype=torch.float32, about={})
    read = load(str(file), dtype=torch.float32, device="cpu")
    assert (read.kind, read.identity) == (family.kind, family.identity)
    for name, module in family.modules.items():
        found = read.modules[name].state_dict()
        assert all(torch.equal(tensor, found[key]) for key, tensor in module.state_dict().items()), name


@pytest.mark.parametrize("kind", PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_file(kind: str) -> None:
    folder = ASSETS / kind
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((folder / "unet/config.json").read_text()))
        text = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(folder / "text_encoder_2"))
    assert sum(p.numel() for p in unet.parameters()) == PARAMETERS[kind]
    assert sum(p.numel() for p in text.parameters()) == 694_659_840
    written = original_weights(kind, "unet", unet, torch.float16) | original_weights(
        kind, "text_encoder_2", text, torch.float16
    )
    assert {name: tuple(written[name].shape) for name in PUBLISHED[kind]} == PUBLISHED[kind]
    expected = "xl_base" if kind == "sdxl" else "xl_refiner"
    assert convert.infer_diffusers_model_type(written) == expected
    read = convert.convert_ldm_unet_checkpoint(dict(written), unet.config)
    assert {k: t.shape for k, t in read.items()} == {k: t.shape for k, t in unet.state_dict().items()}
    prefix = f"conditioner.embedders.{'1' if kind == 'sdxl' else '0'}.model."
    read = convert.convert_open_clip_checkpoint(text, dict(written), prefix)
    assert {k: t.shape for k, t in read.items()} == {k: t.shape for k, t in text.state_dict().items()}


def test_only_the_vae_of_sdxl_stays_in_float32_where_float16_would_overflow(base: Path, random_sd15: Path) -> None:
    family = load(str(base), dtype=torch.float16, device="cpu")
    assert (family.vae.dtype, family.unet.dtype) == (torch.float32, torch.float16)
    assert load(str(base), dtype=torch.bfloat16, device="cpu").vae.dtype == torch.bfloat16
    assert load(str(random_sd15), dtype=torch.float16, device="cpu").vae.dtype == torch.float16


def test_a_vae_in_float32_takes_only_pictures_beyond_its_own_size_in_tiles(base: Path) -> None:
    half, full = (load(str(base), dtype=dtype, device="cpu") for dtype in (torch.float16, torch.float32))
    assert (half.vae.use_tiling, full.vae.use_tiling) == (True, False)
    own = full.vae.config.sample_size // full.pixels_per_latent
    small, large = (
        torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1)) for side in (own, 2 * own)
    )
    assert torch.equal(half.decode(small), full.decode(small))
    tiled, whole = half.decode(large), full.decode(large)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert float((tiled - whole).abs().mean()) < 0.1
    assert half.encode_pixels(whole).isfinite().all()


def requests(prompts: list[str]) -> list[Request]:
    return [Request("free", prompt, prompt, i, 0, seed=40 + i) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("drawn_by", ["base", "base-and-refiner", "refiner-begun-by-base"])
def test_pictures_are_those_of_the_stock_pipelines(
    drawn_by: str, random_xl: Path, random_refiner: Path, tmp_path: Path
) -> None:
    prompts, steps, refined = ["a red critter", "a photo of sks robot"], 5, drawn_by != "base"
    first, second = (load(str(f), dtype=torch.float32, device="cpu") for f in (random_xl, random_refiner))
    first.refiner = second if drawn_by == "base-and-refiner" else None
    second.begun_by = first if drawn_by == "refiner-begun-by-base" else None
    scores = {"aesthetic_score": 8.5, "negative_aesthetic_score": 1.5}
    sampling = Sampling(num_inference_steps=steps, guidance_scale=3.0, handover=0.6, **scores)
    told: list[tuple[int, int]] = []
    manifest = draw(second if second.begun_by else first, requests(prompts), tmp_path, sampling=sampling, about={},
                    resolution_px=64, progress=lambda done, total: told.append((done, total)))  # fmt: skip
    assert told == [(2 * step, 2 * steps) for step in range(1, steps + 1)]
    noted = {key: value for key, value in read_json(manifest).items() if key.endswith("_identity")}
    other = {"base-and-refiner": {"refiner_identity": second.identity},
             "refiner-begun-by-base": {"begun_by_identity": first.identity}}  # fmt: skip
    assert noted == other.get(drawn_by, {})

    latents = torch.cat([torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(40 + i)) for i in range(2)])
    named: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": "np"}
    base, refiner = (DiffusionPipeline.from_pretrained(f) for f in (random_xl, random_refiner))
    if refined:
        begun = base(prompts, latents=latents, denoising_end=0.6, **named | {"output_type": "latent"}).images
        drawn = refiner(prompts, image=begun, denoising_start=0.6, **scores, **named).images
        plain = refiner(prompts, image=begun, denoising_start=0.6, **named).images
        assert not np.array_equal(drawn, plain)
    else:
        drawn = base(prompts, latents=latents, **named).images
    last = second if second.begun_by else first
    _, pixels = draw_batch(last, requests(prompts), sampling, 64, lambda step: None)
    np.testing.assert_allclose(pixels.permute(0, 2, 3, 1).numpy() / 2 + 0.5, drawn, atol=1e-4)
    for request, picture in zip(requests(prompts), drawn, strict=True):
        ours = np.asarray(Image.open(tmp_path / request.file), dtype=int)
        assert np.abs(ours - np.rint(255 * picture)).max() <= 1
        assert ours.std() > 1, "a picture, not a plane"
