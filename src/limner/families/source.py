"""Where the files of a base, or of one part, are: on this machine, else in the hub's cache, else on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from limner.errors import UserError
from limner.families.weights import choose_weights, weights_files
from limner.files import BASES, default_cache

ASSETS = Path(__file__).parent.parent / "assets"
EMBEDDED = {"tiny": ASSETS / "tiny"}
PRETRAINED = ("tiny-xl", "tiny-xl-refiner")
"""Bases that a command makes from the embedded one, on the user's machine."""
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
CONFIGURATIONS = (*(f"{part}/config.json" for part in PARTS), "scheduler/scheduler_config.json")
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
PART_CONFIGURATION, PART_WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SINGLE_FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def locate(name: str) -> Path | None:
    """Return the folder or file of a base that is on this machine, None for a hub name.

    Raises:
        UserError: it is one of `PRETRAINED`, and was not made on this machine.
    """
    path = made_here(name) if name in PRETRAINED else EMBEDDED.get(name, Path(name).expanduser())
    if name in PRETRAINED and not path.exists():
        raise UserError(
            f"base={name!r}: was not made on this machine yet (there is no {path}).",
            "Make it in a checkout of Limner's repository, in less than half an hour: make tiny-xl",
        )
    return path if path.exists() else None


def made_here(name: str) -> Path:
    """Return where a base of `PRETRAINED` lies once it was made; pruning the cache leaves it."""
    return default_cache() / BASES / name


def is_hub_name(name: str) -> bool:
    """Return whether `name` looks like owner/name and not like a path."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and not name.endswith(SINGLE_FILES)


def files_of(name: str, *, weights: bool) -> Path:
    """Return the folder or file of a base, with its weights or with its configurations at least.

    A path on this machine is taken as it is; of a hub name only what the hub's cache lacks is downloaded.

    Raises:
        UserError: there is no such path, or the hub cannot be reached and its cache has not everything.
    """
    path = locate(name)
    if path is not None:
        return path
    if not is_hub_name(name):
        raise UserError(
            f"base={name!r}: there is no such folder or file, and it is no hub name (owner/name).",
            f"Use {', '.join([*EMBEDDED, *PRETRAINED])}, the path of a diffusers folder or .safetensors file, or a "
            "name such as stable-diffusion-v1-5/stable-diffusion-v1-5.",
        )
    cached = _in_hub_cache(name, "model_index.json")
    if cached is not None and not list(missing_files(cached, weights=weights)):
        return cached
    return _download(name, cached, weights=weights)


def part_of(setting: str, name: str, like: str) -> Path:
    """Return where the one part lies that `setting` names; `like` is a hub name of one, or "".

    A path on this machine is taken as it is; from the hub come its config.json and one .safetensors file.

    Raises:
        UserError: there is no such path, or the hub cannot be reached and its cache has not both.
    """
    where, path = f"{setting}={name!r}", Path(name).expanduser()
    if path.exists():
        return path
    if not is_hub_name(name):
        or_like = f", or a name such as {like}" if like else ""
        raise UserError(
            f"{where}: there is no such folder, and it is no hub name (owner/name).",
            f"Give a folder with {PART_CONFIGURATION} and {PART_WEIGHTS}{or_like}.",
        )
    cached = _in_hub_cache(name, PART_CONFIGURATION)
    if cached is not None and safe_weights([file.name for file in cached.iterdir()]):
        return cached

    def absent(reason: str) -> UserError:
        lacks = f"there lacks {PART_WEIGHTS}" if cached else "has nothing of it"
        return UserError(
            f"{where}: is not on this machine (no folder {os.path.join('.', name)}, the hub's cache {lacks}), and the "
            f"hub {reason}.",
            f"Put the file at {cached / PART_WEIGHTS}, or run once with a network." if cached else
            f"Put its {PART_CONFIGURATION} and {PART_WEIGHTS} into a folder and give its path, or run once with a "
            "network.",
        )  # fmt: skip

    with _asking_hub(where, name, absent):
        from huggingface_hub import HfApi, snapshot_download

        listed = [file.rfilename for file in HfApi().model_info(name).siblings or ()]
        weights = safe_weights(listed)
        if weights and PART_CONFIGURATION in listed:
            return Path(snapshot_download(name, allow_patterns=[PART_CONFIGURATION, weights]))
    raise UserError(f"{where}: the hub lists no {PART_CONFIGURATION} with a .safetensors file there.",
                    f"Name another{f', such as {like}' if like else ''}.")  # fmt: skip


def safe_weights(names: Collection[str]) -> str | None:
    """Return which of a folder's files holds the weights of a part and no code; None without one."""
    return choose_weights([name for name in names if name.endswith(".safetensors")])


def missing_files(folder: Path, *, weights: bool) -> Iterator[str]:
    """Yield what a diffusers folder lacks of what its model_index.json names, by its path inside the folder."""
    index = folder / "model_index.json"
    if not index.is_file():
        yield index.name
        return
    parts = json.loads(index.read_text(encoding="utf-8"))
    named = {name for name, kind in parts.items() if isinstance(kind, list) and kind[0]}
    yield from (name for name in CONFIGURATIONS if name.partition("/")[0] in named and not (folder / name).is_file())
    if not weights:
        return
    for part in TOKENIZERS:
        if part in named and not any((folder / part / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            yield f"{part}/vocab.json"
    for part in (part for part in PARTS if part in named):
        files = weights_files(folder / part)
        yield from (f"{part}/{file.name}" for file in files if not file.is_file())
        if not files:
            yield f"{part}/{'model' if part.startswith('text_encoder') else 'diffusion_pytorch_model'}.safetensors"


def _in_hub_cache(name: str, file: str) -> Path | None:
    """Return the folder of a model in the hub's cache; None where `file` of it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _download(name: str, cached: Path | None, *, weights: bool) -> Path:
    """Fetch from the hub what one run needs, and no more: one set of weights, not every variant that lies there."""
    from huggingface_hub import HfApi, snapshot_download

    with _asking_hub(f"base={name!r}", name, lambda reason: _absent(name, cached, reason, weights=weights)):
        listed = [file.rfilename for file in HfApi().model_info(name).siblings or ()]
        if "model_index.json" in listed:
            return Path(snapshot_download(name, allow_patterns=list(_wanted(listed, weights=weights))))
    raise UserError(
        f"base={name!r}: is no diffusers model (the hub lists no model_index.json there).",
        "Name another, or download its .safetensors file and give the file's path.",
    )


@contextmanager
def _asking_hub(where: str, name: str, absent: Callable[[str], UserError]) -> Iterator[None]:
    """Within this block the hub is asked for `name`; `absent` says what to do where it cannot be, and why."""
    from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise UserError(
            f"{where}: the hub gives it only to those who accepted its terms.",
            f"Accept them at https://huggingface.co/{name} and run: hf auth login",
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"{where}: the hub has no such model.", "See the name on its page.") from error
    except OfflineModeIsEnabled as error:
        raise absent("is switched off (HF_HUB_OFFLINE=1)") from error
    except Exception as error:  # which errors a broken network gives depends on the hub library's HTTP library
        raise absent(f"gave nothing ({type(error).__name__}: {error})") from error


def _wanted(listed: Collection[str], *, weights: bool) -> Iterator[str]:
    """Yield patterns of the files to download."""
    yield from ("model_index.json", *CONFIGURATIONS)
    if not weights:
        return
    yield from (f"{part}/{name}" for part in TOKENIZERS for name in TOKENIZER)
    for part in PARTS:
        inside = [name.removeprefix(f"{part}/") for name in listed if name.startswith(f"{part}/")]
        chosen = choose_weights(inside)
        if chosen:
            yield f"{part}/{chosen}"
            if chosen.endswith(".json"):
                yield f"{part}/*-of-*"


def _absent(name: str, cached: Path | None, reason: str, *, weights: bool) -> UserError:
    from huggingface_hub.constants import HF_HUB_CACHE

    if cached is None:
        return UserError(
            f"base={name!r}: is not on this machine (no folder {os.path.join('.', name)}, nothing in the hub's cache "
            f"{HF_HUB_CACHE}), and the hub {reason}.",
            "Copy its diffusers folder (with model_index.json) or its .safetensors file to this machine and give the "
            "path, or run once with a network.",
        )
    lacking = list(missing_files(cached, weights=weights))
    more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
    return UserError(
        f"base={name!r}: its copy in the hub's cache lacks {lacking[0]}{more}, and the hub {reason}.",
        f"Put the file at {cached / lacking[0]}, or run once with a network.",
    )
