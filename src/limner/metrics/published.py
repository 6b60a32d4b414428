"""Published encoders by hub name or folder: where they are on this machine, else how to get them."""

from __future__ import annotations

from pathlib import Path

import torch

from limner.errors import UserError
from limner.metrics.aesthetic import Aesthetic
from limner.metrics.encoder import PatchEncoder
from limner.metrics.image_text import ImageText
from limner.metrics.preprocessing import loading
from limner.metrics.vision import Vision

PUBLISHED = ("facebook/dinov2-small", "facebook/dino-vits16", "openai/clip-vit-base-patch32")
"""Who judges where nobody is named: the first decides, the second compares with DreamBooth's paper, the third reads."""
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SETTINGS = ("*.json", "merges.txt", "vocab.txt")


def on_this_machine(name: str) -> Path | None:
    """Return the folder of a model: the one that is named, else the hub's cache; None where it is not (wholly) here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    folder = Path(name).expanduser()
    if not folder.is_dir():
        try:
            found = try_to_load_from_cache(name, "config.json")
        except HFValidationError:
            return None
        folder = Path(found).parent if isinstance(found, str) else folder
    needed = ("config.json", "preprocessor_config.json")
    has_weights = any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    return folder if has_weights and all((folder / file).is_file() for file in needed) else None


def require(name: str, setting: str) -> None:
    """Refuse a model that is neither on this machine nor on the hub; nothing is downloaded."""
    if on_this_machine(name) is None:
        _listed(name, setting)


def fetch(name: str, setting: str) -> Path:
    """Return the folder of a model; what is not on this machine is downloaded.

    Raises:
        UserError: there is no such folder and the hub does not give it; it begins with the name of the `setting`.
    """
    folder = on_this_machine(name)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    listed = _listed(name, setting)
    weights = _WEIGHTS[0] if any(file.endswith(".safetensors") for file in listed) else _WEIGHTS[1]
    return Path(snapshot_download(name, allow_patterns=[*_SETTINGS, weights]))


def load_encoder(name: str, setting: str, device: torch.device | str = "cpu") -> PatchEncoder:
    """Load an encoder by hub name or folder: one that reads text too (CLIP), else a vision transformer (DINO)."""
    folder = fetch(name, setting)
    return (ImageText if _reads_text(folder) else Vision)(folder, name=short(name), device=device)


def load_quality(name: str, setting: str, device: torch.device | str = "cpu") -> ImageText | Aesthetic:
    """Load a model of image quality: one that reads prompts (PickScore), else CLIP with a linear head (LAION)."""
    folder = fetch(name, setting)
    return (ImageText if _reads_text(folder) else Aesthetic)(folder, name=short(name), device=device)


def short(name: str) -> str:
    """Return what stands in the keys of a model's scores: the last part of its name or folder."""
    return Path(name).name


def how_to_get(name: str) -> str:
    """Return what to do about a published model that is not on this machine."""
    return f"{name} is not on this machine; download it once with: hf download {name}"


def _listed(name: str, setting: str) -> list[str]:
    """Return the files that the hub has of a model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if Path(name).expanduser().is_dir():
        raise UserError(
            f"{setting}: {name} lacks config.json, preprocessor_config.json or weights.",
            "Name a folder with all three, as transformers saves them.",
        )
    try:
        return [file.rfilename for file in HfApi().model_info(name).siblings or ()]
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"{setting}: {name!r} is no folder, and the hub has no such model.", "See the name on its page."
        ) from error
    except Exception as error:  # which errors a broken network gives depends on the hub library's HTTP library
        raise UserError(
            f"{setting}: {name!r} is not on this machine, and the hub gave nothing ({type(error).__name__}).",
            f"Run once with a network: hf download {name} - or name the folder of a copy.",
        ) from error


def _reads_text(folder: Path) -> bool:
    from transformers import AutoConfig

    with loading(folder, "an encoder"):
        return hasattr(AutoConfig.from_pretrained(folder), "text_config")
