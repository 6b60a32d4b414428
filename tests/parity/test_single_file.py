"""The single-file layout against diffusers' own converters, the published SD 1.5, and a model of its structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    infer_diffusers_model_type,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from limner.export.diffusers_folder import write_diffusers_folder
from limner.export.layout import original_weights
from limner.export.single_file import write_single_file
from limner.families.load import load
from limner.families.source import ASSETS

PUBLISHED = {
    "model.diffusion_model.time_embed.2.weight": (1280, 1280),
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
    "model.diffusion_model.input_blocks.11.0.emb_layers.1.weight": (1280, 1280),
    "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
    "model.diffusion_model.middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.0.0.in_layers.2.weight": (1280, 2560, 3, 3),
    "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.8.2.conv.weight": (640, 640, 3, 3),
    "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
    "model.diffusion_model.output_blocks.11.1.proj_out.weight": (320, 320, 1, 1),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.encoder.mid.block_2.norm2.weight": (512,),
    "first_stage_model.encoder.norm_out.weight": (512,),
    "first_stage_model.decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.mid.attn_1.proj_out.bias": (512,),
    "first_stage_model.decoder.up.1.block.0.nin_shortcut.weight": (256, 512, 1, 1),
    "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.decoder.conv_out.weight": (3, 128, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "first_stage_model.post_quant_conv.weight": (4, 4, 1, 1),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight": (768, 3072),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
}
"""Some tensors of the published v1-5-pruned-emaonly file, one of each kind and place."""


def unet(**changes: Any) -> UNet2DConditionModel:
    """Make SD 1.5's UNet: four levels of two layers, the coarsest without attention."""
    return UNet2DConditionModel(sample_size=64, **{"cross_attention_dim": 768, **changes})


def vae(**changes: Any) -> AutoencoderKL:
    given: dict[str, Any] = {"block_out_channels": (128, 256, 512, 512), **changes}
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2,
        sample_size=512, **given,
    )  # fmt: skip


def text_encoder(**changes: Any) -> CLIPTextModel:
    full = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    return CLIPTextModel(CLIPTextConfig(**{**full, **changes}))


@pytest.fixture(scope="module")
def full_size() -> dict[str, torch.nn.Module]:
    """SD 1.5 in its full size, without memory."""
    with torch.device("meta"):
        return {"unet": unet(), "vae": vae(), "text_encoder": text_encoder(vocab_size=49408)}


@pytest.mark.parametrize(
    ("part", "tensors", "numbers"),
    [("unet", 686, 859_520_964), ("vae", 248, 83_653_863), ("text_encoder", 196, 123_060_480)],
)
def test_diffusers_takes_every_key_and_misses_none(
    part: str, tensors: int, numbers: int, full_size: dict[str, Any]
) -> None:
    module = full_size[part]
    written = original_weights("sd15", part, module, torch.float16)
    assert (len(written), sum(t.numel() for t in written.values())) == (tensors, numbers)
    convert = {
        "unet": lambda: convert_ldm_unet_checkpoint(dict(written), module.config),
        "vae": lambda: convert_ldm_vae_checkpoint(dict(written), module.config),
        "text_encoder": lambda: {
            name.removeprefix("text_model."): tensor for name, tensor in convert_ldm_clip_checkpoint(written).items()
        },
    }
    read, wanted = convert[part](), module.state_dict()
    assert {k: t.shape for k, t in read.items()} == {k: t.shape for k, t in wanted.items()}


def test_names_and_shapes_are_those_of_the_published_file(full_size: dict[str, Any]) -> None:
    written = {
        k: t for part, m in full_size.items() for k, t in original_weights("sd15", part, m, torch.float16).items()
    }
    assert {name: tuple(written[name].shape) for name in PUBLISHED} == PUBLISHED
    assert infer_diffusers_model_type(written) == "v1"


def small_sd15(folder: Path) -> Path:
    """Write a model of SD 1.5's structure with random weights and few channels."""
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "tiny" / "tokenizer")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = text_encoder(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=32, pad_token_id=tokenizer.pad_token_id, **ends,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(
        unet=unet(block_out_channels=(16, 32, 32, 32), cross_attention_dim=32, norm_num_groups=8, attention_head_dim=4),
        vae=vae(block_out_channels=(8, 16, 16, 16), norm_num_groups=8), text_encoder=text, tokenizer=tokenizer,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.mark.parametrize(("base", "dtype"), [("sd15", torch.float32), ("tiny", torch.float16)])
def test_from_single_file_gives_the_identical_model_and_picture(base: str, dtype: torch.dtype, tmp_path: Path) -> None:
    name = str(small_sd15(tmp_path / "base")) if base == "sd15" else base
    family = load(name, dtype=dtype, device="cpu")
    path = write_single_file(family, tmp_path / "model.safetensors", dtype=dtype, about={})
    folder = write_diffusers_folder(family, tmp_path / "model", dtype=dtype, about={})
    stock = StableDiffusionPipeline.from_single_file(str(path), config=str(folder), dtype=dtype)
    ours = family.pipeline(type(stock.scheduler).from_config(family.scheduler_config))
    for part in ("unet", "vae", "text_encoder"):
        found, wanted = getattr(stock, part).state_dict(), getattr(ours, part).state_dict()
        assert found.keys() == wanted.keys()
        assert all(t.dtype == found[k].dtype and torch.equal(t, found[k]) for k, t in wanted.items())
    assert {k: v for k, v in stock.scheduler.config.items() if k[0] != "_"} == {
        k: v for k, v in ours.scheduler.config.items() if k[0] != "_"
    }
    pictures = [picture(pipe) for pipe in (ours, stock)]
    assert np.array_equal(*pictures)
    assert pictures[0].std() > 0.01, "a picture, not a plane"


def picture(pipe: Any) -> Any:
    """Draw with weights in memory of their own: where a mapped file's tensor begins changes a product's last bit."""
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        for weight in part.parameters():
            weight.data = weight.data.float().clone()
    pipe.set_progress_bar_config(disable=True)
    draws = torch.Generator().manual_seed(3)
    return pipe("a red critter", num_inference_steps=2, height=64, width=64, generator=draws, output_type="np").images
