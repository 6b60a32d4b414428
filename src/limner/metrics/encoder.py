"""What a metric sees with: an encoder turns pixels (or prompts) into one feature vector each."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from limner.types import Pixels

Features = Float[Tensor, "rows dim"]
"""One feature vector a row, float32, on the CPU; not normalised."""
Patches = Float[Tensor, "rows patches values"]
"""One feature vector for each patch of each picture, row by row of the picture, float32, on the CPU."""
Masks = Float[Tensor, "rows height width"]
"""Where the subject is, in [0, 1]: 1 is inside."""


class ImageEncoder(ABC):
    """Turns pictures into feature vectors; does its own resizing and normalisation."""

    name: str
    """Stands in the key of every score made with it: "subject_fidelity.<name>"."""
    identity: str
    """What exactly it is: the first 16 hex digits of the SHA-256 of its weights, or of its definition."""
    about: str
    """One sentence for the report: what it is, and where it comes from."""
    is_independent: bool = True
    """Whether it was made apart from the base; one that was not is asked about prompts only."""

    @abstractmethod
    def __call__(self, pixels: Pixels) -> Features:
        """Return the feature vector of each picture; `pixels` in [-1, 1], any size."""


class PatchEncoder(ImageEncoder):
    """An image encoder that sees the parts of a picture too."""

    @abstractmethod
    def see(self, pixels: Pixels) -> tuple[Features, Patches]:
        """Return the feature vector of each picture and of each of its patches; `pixels` in [-1, 1], any size."""

    @abstractmethod
    def cells(self, masks: Masks) -> Float[Tensor, "rows patches"]:
        """Return the share of each patch that lies inside, in [0, 1]; masks have the size of their pictures."""


class TextImageEncoder(ImageEncoder):
    """An image encoder whose features can be compared with those of a text."""

    @abstractmethod
    def encode_text(self, prompts: Sequence[str]) -> Features:
        """Return the feature vector of each prompt, in the space of the pictures' features."""


def hash_files(paths: Sequence[Path]) -> str:
    """Return the first 16 hex digits of the SHA-256 over the files' bytes, in the given order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()[:16]


def hash_weights(folder: Path) -> str:
    """Return what identifies the model in a folder of transformers' format: the hash of its weights."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    return hash_files(files)
