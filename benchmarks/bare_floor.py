"""The least that a LoRA's step can cost: `python -m benchmarks.bare_floor BASE`, a process that prints its steps.

The base's own UNet by itself, as diffusers makes it, with frozen weights and nothing attached: forward and backward,
gradients of activations only, and only as far back as the input of the first attention, where the first LoRA lies.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

ROWS, PIXELS_PER_LATENT, TOKENS, SIZES = 1, 8, 77, 6


def main() -> None:
    """Load, take the steps, print each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare_floor", description=__doc__)
    parser.add_argument("base")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    unet = bare_unet(given.base, getattr(torch, given.precision))
    inputs = batch(unet, given.resolution // PIXELS_PER_LATENT)
    for number in range(given.steps):
        unet(**inputs).sample.float().square().mean().backward()
        print(f"floor: {number + 1}/{given.steps}", flush=True)


def bare_unet(base: str, dtype: torch.dtype) -> Any:
    """Return a folder's UNet, frozen, with a graph that begins at its first attention."""
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(base, subfolder="unet", torch_dtype=dtype)
    unet.requires_grad_(False)
    first = next(module for name, module in unet.named_modules() if name.endswith(".attn1"))
    first.register_forward_pre_hook(lambda _, args: (args[0].requires_grad_(), *args[1:]))
    return unet


def batch(unet: Any, side: int) -> dict[str, Any]:
    """Return random inputs of the UNet's own shapes; SDXL's is told of a whole text and of sizes as well."""
    draws, config = torch.Generator().manual_seed(0), unet.config
    inputs = {
        "sample": torch.randn(ROWS, config.in_channels, side, side, generator=draws).to(unet.dtype),
        "timestep": torch.randint(1000, (ROWS,), generator=draws),
        "encoder_hidden_states": torch.randn(ROWS, TOKENS, config.cross_attention_dim, generator=draws).to(unet.dtype),
    }
    if config.addition_embed_type != "text_time":
        return inputs
    pixels = side * PIXELS_PER_LATENT
    width = config.projection_class_embeddings_input_dim - SIZES * config.addition_time_embed_dim
    told = {
        "text_embeds": torch.randn(ROWS, width, generator=draws).to(unet.dtype),
        "time_ids": torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]] * ROWS, dtype=unet.dtype),
    }
    return {**inputs, "added_cond_kwargs": told}


if __name__ == "__main__":
    main()
