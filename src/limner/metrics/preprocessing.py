"""Models in transformers' format: loaded without noise, and pictures and masks made ready for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import UserError
from limner.metrics.encoder import Masks
from limner.types import Pixels


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """Load a model from a folder within this block: without bars or remarks; `what` it is to be, for the error."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: cannot be loaded as {what} ({str(error).splitlines()[0]}).",
            "Name a folder or hub model that holds one in transformers' format, with its preprocessor settings.",
        ) from error
    finally:
        logging.set_verbosity(said)


class Preprocessing:
    """The preprocessing whose settings lie beside a model in transformers' format; Pillow resizes, on the CPU."""

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoImageProcessor

        self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil")

    def pixels(self, pixels: Pixels) -> Float[Tensor, "rows 3 down across"]:
        """Return what the model is shown; `pixels` in [-1, 1]."""
        return self._prepared(((pixels.clamp(-1, 1) + 1) * 127.5).round())

    def cells(self, masks: Masks, patch_px: int) -> Float[Tensor, "rows patches"]:
        """Return the share of each patch that lies inside, after the same resize and crop as the pictures'."""
        grey = (masks.clamp(0, 1) * 255).round()[:, None].expand(-1, 3, -1, -1)
        white = self._prepared(grey, do_normalize=False).clamp(0, 1)
        return torch.nn.functional.avg_pool2d(white[:, 0], patch_px).flatten(1)

    def _prepared(self, bytes_: Tensor, **changes: bool) -> Tensor:
        pictures = list(bytes_.to(torch.uint8).cpu().numpy())
        made = self.processor(pictures, return_tensors="pt", input_data_format="channels_first", **changes)
        return made["pixel_values"].float()


def patches_of(tokens: Float[Tensor, "rows tokens dim"], inputs: Tensor, patch_px: int) -> Tensor:
    """Return a vision transformer's tokens without those before the patches (CLS, registers)."""
    height, width = inputs.shape[-2:]
    number = (height // patch_px) * (width // patch_px)
    return tokens[:, tokens.shape[1] - number :].float().cpu()
