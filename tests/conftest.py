"""What every test can rely on: no network, a cache of its own, fixed threads and seeds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Read by the libraries when they are imported, so set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"

settings.register_profile("limner", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("limner")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point LIMNER_CACHE to a folder that lives as long as the session."""
    folder = tmp_path_factory.mktemp("limner-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Begin every test from the same global seed, where it uses torch or NumPy at all."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def random_base(random_sd15: Path) -> Path:
    """Return the path of a very small base with random weights: of SD 1.5's classes, in the contracts of SDXL's too."""
    return random_sd15


@pytest.fixture(scope="session")
def random_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a diffusers folder of Stable Diffusion 1.5's classes, very small, with random weights; return its path.

    64-pixel pictures, 16 x 16 latents, v-prediction; its tokenizer is the embedded base's.
    """
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
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
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4, sample_size=64,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="v_prediction",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("random-base")
    StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture
def family(random_base: Path):
    """Load the random base afresh, float32, on the CPU."""
    import torch

    from limner.families.load import load

    return load(str(random_base), dtype=torch.float32, device="cpu")


@pytest.fixture(scope="session")
def random_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a diffusers folder of SDXL's classes, very small, with random weights; return its path."""
    from limner.families.source import ASSETS
    from tests.random_xl import make_random_xl

    return make_random_xl(tmp_path_factory.mktemp("random-xl"), tokenizer=ASSETS / "tiny" / "tokenizer")


@pytest.fixture(scope="session")
def random_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the refiner of `random_xl`; return its path."""
    from limner.families.source import ASSETS
    from tests.random_xl import make_random_xl

    folder = tmp_path_factory.mktemp("random-refiner")
    return make_random_xl(folder, refiner=True, tokenizer=ASSETS / "tiny" / "tokenizer")
