"""LPIPS: how different two pictures look, by AlexNet's features and weights that people's answers gave."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from limner.types import Pixels


def why_no_lpips() -> str:
    """Return what is missing for LPIPS; nothing where it can be taken."""
    if importlib.util.find_spec("lpips") is None:
        return 'the package lpips is not installed; install it with: pip install "limner[metrics]"'
    return ""


class Lpips:
    """LPIPS (arXiv:1801.03924) with AlexNet, by the package of its authors; it downloads AlexNet once."""

    name = "lpips-alex"
    about = "LPIPS 0.1, AlexNet: a distance between two pictures as people see it (package lpips)."

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from lpips import LPIPS  # pyright: ignore[reportMissingImports]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision in a way that is no longer its own
            self.model = LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)
        self.device = torch.device(device)
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        self.identity = digest.hexdigest()[:16]

    @torch.inference_mode()
    def __call__(self, a: Pixels, b: Pixels) -> Float[Tensor, " rows"]:
        """Return the distance of each picture of `a` to the same row of `b`; both in [-1, 1], 0 is equal."""
        return self.model(a.to(self.device), b.to(self.device)).flatten().float().cpu()
