"""What a base is, read from configurations and headers in a moment: family, prediction type, inpainting."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limner.errors import UserError
from limner.families.foreign import refuse_what_is_no_base
from limner.families.source import ASSETS, PRETRAINED, files_of, made_here
from limner.families.weights import Header, read_header, weights_files
from limner.rundir import read_json

UNET, VAE = "model.diffusion_model.", "first_stage_model."
"""Prefixes of the parts in a single file."""


@dataclass(frozen=True)
class Kohya:
    """How kohya's tools write a family's LoRA: others read what they write."""

    prefixes: Mapping[str, str]
    """How the names of each part's layers begin."""
    base_model_version: str
    """What `ss_base_model_version` says; A1111 tells the family by it."""
    original_names: bool = False
    """Whether the UNet's blocks have the original layout's names; else diffusers'."""


@dataclass(frozen=True)
class Known:
    """What is known of a family before anything of it is loaded."""

    called: str
    prefixes: Mapping[str, str] = field(default_factory=dict[str, str])
    """How the names of each part begin in a single file; none for a family that Limner cannot train."""
    modelspec: str = ""
    """ModelSpec's name of the architecture."""
    refiner: str = ""
    """The family that can finish the pictures which this one begins."""
    published: str = ""
    """The hub name of the best known model."""
    decoder: str = ""
    """The hub name of the best known small decoder of its latents."""
    kohya: Kohya = field(default_factory=lambda: Kohya({}, ""))
    """How its LoRA files are written."""


FAMILIES = {
    "sd15": Known("SD 1.x", {
        "unet": UNET, "vae": VAE, "text_encoder": "cond_stage_model.transformer.",
    }, modelspec="stable-diffusion-v1", published="stable-diffusion-v1-5/stable-diffusion-v1-5",
       decoder="madebyollin/taesd",
       kohya=Kohya({"unet": "lora_unet", "text_encoder": "lora_te"}, "sd_v1")),
    "sd2": Known("SD 2.x"),
    "sdxl": Known("SDXL", {
        "unet": UNET, "vae": VAE, "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    }, modelspec="stable-diffusion-xl-v1-base", refiner="sdxl-refiner",
       published="stabilityai/stable-diffusion-xl-base-1.0",
       decoder="madebyollin/taesdxl",
       kohya=Kohya({"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
                   "sdxl_base_v1-0", original_names=True)),
    "sdxl-refiner": Known("the SDXL refiner", {
        "unet": UNET, "vae": VAE, "text_encoder_2": "conditioner.embedders.0.model.",
    }, modelspec="stable-diffusion-xl-v1-refiner", published="stabilityai/stable-diffusion-xl-refiner-1.0",
       decoder="madebyollin/taesdxl",
       kohya=Kohya({"unet": "lora_unet", "text_encoder_2": "lora_te2"}, "sdxl_refiner", original_names=True)),
}  # fmt: skip
"""Families by the names that they have in files; the class of each that can be trained is in `load.MEMBERS`."""
SUPPORTED = tuple(family for family, known in FAMILIES.items() if known.prefixes)
BY_CROSS_ATTENTION = {1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}
SKELETONS = tuple(ASSETS / name for name in (*SUPPORTED, "tiny"))
"""Diffusers folders whose configurations a single file can have: it carries none of its own."""
USE = "Use an SD 1.5 or SDXL model."
REFINED = (0.0, 0.2)
"""The part of the noise, from clean 0 to pure noise 1, of SDXL's refiner (arXiv:2307.01952 section 2.5)."""
MODELSPEC = {"epsilon": "epsilon", "v": "v_prediction"}


@dataclass(frozen=True)
class Recognised:
    """What a base is; nothing of it was loaded to know that."""

    name: str
    """What the user called it."""
    path: Path
    """Its folder or file."""
    family: str
    """A key of FAMILIES, or the name of another family."""
    prediction_type: str
    """epsilon, v_prediction or sample, as in diffusers."""
    prediction_type_from: str | None
    """Where that is said; None when nothing says it and it is assumed."""
    in_channels: int
    """Channels of the UNet's input: 4, of an inpainting model 9, of an editing model 8."""
    cross_attention: int
    """Width of the text that the UNet attends to: 768 for SD 1.x, 2048 for SDXL."""
    native_resolution_px: int
    """Side of the pictures that it draws."""
    configurations: Path
    """The diffusers folder that its configurations are in; of a single file, one of Limner's own."""
    zero_terminal_snr: bool = False
    """Whether a single file's marker says that the noise schedule ends in pure noise; a folder's scheduler knows it."""

    @property
    def size_step_px(self) -> int:
        """Sides of pictures are multiples of it, by the configurations."""
        unet, vae = (read_json(self.configurations / part / "config.json") for part in ("unet", "vae"))
        return size_step_px(unet["block_out_channels"], vae["block_out_channels"])

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """Its scheduler's settings, by its configurations."""
        return read_json(self.configurations / "scheduler" / "scheduler_config.json")

    @property
    def called(self) -> str:
        """What people call its family; one that is not known by its own name ("Flux")."""
        return FAMILIES[self.family].called if self.family in FAMILIES else self.family

    @property
    def inpainting(self) -> bool:
        return self.in_channels == 9

    @property
    def is_refiner(self) -> bool:
        """Whether it can only finish pictures that another model has begun."""
        return is_refiner(self.family)

    @property
    def refiner(self) -> str:
        """The family that can finish the pictures which it begins; nothing for one that no model refines."""
        return FAMILIES[self.family].refiner if self.family in FAMILIES else ""

    @property
    def latents(self) -> tuple[Any, ...]:
        """What its latents are: channels, side in pixels of one, and scale. Only alike ones can be handed over."""
        vae = read_json(self.configurations / "vae" / "config.json")
        known = (vae["latent_channels"], 2 ** (len(vae["block_out_channels"]) - 1))
        return *known, vae.get("scaling_factor", 0.18215), vae.get("shift_factor") or 0.0

    @property
    def line(self) -> str:
        """Return what it is as one line to print."""
        kind = ", inpainting" if self.inpainting else ""
        said_by = self.prediction_type_from or "assumed: nothing says it"
        return (
            f"base {self.name}: {self.called}{kind}, {self.prediction_type} ({said_by}), {self.native_resolution_px} px"
        )


def up_blocks(family: str) -> list[str]:
    """Return the classes of a family's UNet's blocks on the way up."""
    return read_json(ASSETS / family / "unet" / "config.json")["up_block_types"]


def family_of_layers(widths: Mapping[str, int], said: str = "") -> str | None:
    """Return the family that a LoRA is for, by its layers with their input widths, else by what its header says.

    None where neither tells: CLIP-L alone is the text encoder of SD 1.x and SDXL alike.
    """
    width = next((width for name, width in widths.items() if re.search(r"attn2\.to_[kv]$", name)), 0)
    if width in BY_CROSS_ATTENTION or width == 768:
        return BY_CROSS_ATTENTION.get(width, "sd15")
    names = "\n".join(widths)
    if "text_encoder_2." in names or re.search(r"\.transformer_blocks\.[1-9]", names) or "xl" in said:
        return "sdxl"
    if "down_blocks.0.attentions." in names or said.startswith(("sd_v1", FAMILIES["sd15"].modelspec)):
        return "sd15"
    return None


def size_step_px(unet_blocks: Sequence[int], vae_blocks: Sequence[int]) -> int:
    """Return what the sides of pictures are multiples of, from the channels of each block of UNet and VAE."""
    return 2 ** (len(unet_blocks) - 1 + len(vae_blocks) - 1)


def is_refiner(family: str) -> bool:
    """Tell whether a family can only finish pictures that another has begun."""
    return any(known.refiner == family for known in FAMILIES.values())


def recognise(name: str) -> Recognised:
    """Return what the base called `name` is, in a moment: no weight is read and nothing is executed.

    Raises:
        UserError: there is no such base, or it is something else (a LoRA, an embedding, a VAE ...), which is said.
    """
    path = files_of(name, weights=False)
    return _single_file(name, path) if path.is_file() else _folder(name, path)


def refuse_unsupported(base: Recognised) -> None:
    """Raise for a base that Limner cannot train, in one line that says what it is."""
    if base.family not in SUPPORTED:
        width = f" (cross-attention {base.cross_attention})" if base.cross_attention else ""
        raise UserError(f"base={base.name!r}: is {base.called}{width}, which is not supported.", USE)
    if base.in_channels != 4:
        kind = "an inpainting model" if base.inpainting else "an editing model"
        raise UserError(
            f"base={base.name!r}: is {kind} (its UNet takes {base.in_channels} channels).",
            "Use the text-to-image model that it was made from.",
        )


def _folder(name: str, folder: Path) -> Recognised:
    index = folder / "model_index.json"
    if not index.is_file():
        refuse_what_is_no_base(name, folder)
    pipeline = _read(index)
    if not pipeline.get("unet", [None])[0]:
        family = str(pipeline.get("_class_name", "unknown")).removesuffix("Pipeline")
        return Recognised(name, folder, family, "unknown", index.name, 0, 0, 0, folder)
    unet, vae = _read(folder / "unet/config.json", name), _read(folder / "vae/config.json", name)
    scheduler = folder / "scheduler/scheduler_config.json"
    said = _read(scheduler, name).get("prediction_type")
    width = unet["cross_attention_dim"]
    _check_header(name, folder / "unet", unet)
    return Recognised(
        name, folder, _family_of_unet(unet, pipeline), said or "epsilon",
        scheduler.name if said else None,
        unet["in_channels"], width if isinstance(width, int) else max(width),
        unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1), folder,
    )  # fmt: skip


def _family_of_unet(unet: Mapping[str, Any], pipeline: Mapping[str, Any]) -> str:
    """Return the family of a diffusers folder: by its structure first, as small models have other widths."""
    if unet.get("addition_embed_type") == "text_time" or pipeline.get("text_encoder_2", [None])[0]:
        return "sdxl" if pipeline.get("text_encoder", [None])[0] else "sdxl-refiner"
    return BY_CROSS_ATTENTION.get(unet["cross_attention_dim"], "sd15")


def _check_header(name: str, folder: Path, unet: Mapping[str, Any]) -> None:
    """Refuse weights that are of another shape than their configuration says, by the first layer."""
    wanted = (unet["block_out_channels"][0], unet["in_channels"], 3, 3)
    for file in weights_files(folder):
        found = read_header(file).shapes.get("conv_in.weight", wanted) if file.is_file() else wanted
        if found != wanted:
            raise UserError(
                f"base={name!r}: unet/{file.name} does not fit unet/config.json (conv_in.weight is {found} and should "
                f"be {wanted}).",
                "The folder mixes two models: get it again.",
            )


def _single_file(name: str, path: Path) -> Recognised:
    header = read_header(path)
    first = header.shapes.get(f"{UNET}input_blocks.0.0.weight")
    if first is None:
        refuse_what_is_no_base(name, path, header)
    width = next((shape[-1] for key, shape in header.shapes.items() if key.endswith("attn2.to_k.weight")), 0)
    family = _family_of_keys(header, width)
    prediction_type, said_by = _prediction_type(header)
    if family not in SUPPORTED:
        return Recognised(name, path, family, prediction_type or "epsilon", said_by, first[1], width, 768, path.parent)
    skeleton = _skeleton(name, first[0], width)
    like = _folder(name, skeleton)
    return Recognised(
        name, path, family, prediction_type or like.prediction_type, said_by, first[1], width,
        like.native_resolution_px, skeleton, "ztsnr" in header.shapes,
    )  # fmt: skip


def _family_of_keys(header: Header, width: int) -> str:
    if f"{UNET}label_emb.0.0.weight" in header.shapes:
        base = any(key.startswith("conditioner.embedders.1.") for key in header.shapes)
        return "sdxl" if base or width == 2048 else "sdxl-refiner"
    if any(key.startswith("cond_stage_model.model.") for key in header.shapes):  # OpenCLIP's names
        return "sd2"
    return BY_CROSS_ATTENTION.get(width, "sd15")


def _prediction_type(header: Header) -> tuple[str | None, str | None]:
    """Return what a single file says of its prediction type, and where; few say it at all."""
    if "v_pred" in header.shapes:
        return "v_prediction", "its key v_pred"
    said = MODELSPEC.get(header.metadata.get("modelspec.prediction_type", ""))
    return (said, "its modelspec") if said else (None, None)


def _skeleton(name: str, channels: int, width: int) -> Path:
    for folder in (*SKELETONS, *filter(Path.is_dir, map(made_here, PRETRAINED))):
        unet = _read(folder / "unet/config.json")
        if (unet["block_out_channels"][0], unet["cross_attention_dim"]) == (channels, width):
            return folder
    raise UserError(
        f"base={name!r}: its UNet is {channels} wide with cross-attention {width}; SD 1.5's is 320 and 768, SDXL's "
        "320 and 2048, its refiner's 384 and 1280.",
        "A single file carries no configuration, so only these shapes can be read: give a diffusers folder.",
    )


def _read(file: Path, name: str = "") -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"base={name!r}: {file.parent.name}/{file.name} is missing.",
            "Give a complete diffusers folder (with model_index.json, unet, vae, text_encoder, tokenizer, scheduler).",
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: is not readable JSON (line {error.lineno}).", "Get the file again.") from error
