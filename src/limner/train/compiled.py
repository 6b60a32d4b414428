"""The UNet's repeated blocks compiled by `torch.compile`, each as a region of its own, and only while it learns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from limner.files import default_cache

REGIONS = ("BasicTransformerBlock", "ResnetBlock2D")
"""diffusers' classes whose blocks a UNet repeats: norms, activations and additions in them are fused."""
MOST_VERSIONS = 256
"""So many versions of a block may be compiled: each has adapters of its own, and so a version of its own."""


def keep_compiled() -> None:
    """Have what torch compiles from here on lie in Limner's cache, and be taken from there by the next run."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_cache() / "compiled"))  # torch reads it at the first


class Compiled:
    """Compiles a UNet's blocks for the shapes that they meet; outside of its block they are what they were."""

    def __init__(self, unet: nn.Module, *, backend: str = "inductor") -> None:
        keep_compiled()
        blocks = [module for module in unet.modules() if type(module).__name__ in REGIONS]
        self._compiled = {block: torch.compile(block.forward, dynamic=False, backend=backend) for block in blocks}

    def __len__(self) -> int:
        return len(self._compiled)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within this block the UNet computes with what is compiled, compiling what it meets for the first time."""
        versions: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
        with versions.patch(recompile_limit=MOST_VERSIONS, accumulated_recompile_limit=MOST_VERSIONS * 8):
            for block, forward in self._compiled.items():
                block.forward = forward
            try:
                yield
            finally:
                for block in self._compiled:
                    del block.forward
