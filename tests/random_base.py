"""A base of Stable Diffusion 1.5's classes, very small, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def make_random_base(folder: Path) -> Path:
    """Write a diffusers folder of a model with random weights, the same every time; return its path.

    64-pixel pictures, 16 x 16 latents, v-prediction, two heads of attention; its tokenizer is the embedded base's.
    """
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from limner.families.source import ASSETS

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "tiny" / "tokenizer")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=32, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    vae, scheduler = make_vae_and_scheduler(scaling_factor=0.18215)
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_vae_and_scheduler(scaling_factor: float) -> tuple[Any, Any]:
    """Return a VAE of 64-pixel pictures and 16 x 16 latents with random weights, and a schedule of v-prediction."""
    from diffusers import AutoencoderKL, DDIMScheduler

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4, sample_size=64,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, scaling_factor=scaling_factor,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    return vae, scheduler


def make_small_decoder(folder: Path, *, blocks: int = 3, channels: int = 4, seed: int = 0) -> Path:
    """Write a diffusers folder of an AutoencoderTiny with random weights, as small as it can be; return its path.

    With three blocks it fits the random bases: 4 pixels per latent.
    """
    import torch
    from diffusers import AutoencoderTiny

    torch.manual_seed(seed)
    model = AutoencoderTiny(
        encoder_block_out_channels=(8,) * blocks, decoder_block_out_channels=(8,) * blocks, latent_channels=channels,
        num_encoder_blocks=(1,) * blocks, num_decoder_blocks=(1,) * blocks,
    )  # fmt: skip
    last: Any = model.decoder.layers[-1]
    last.weight.data *= 20  # so that its pictures are of more than one colour
    model.save_pretrained(folder)
    return folder
