"""What was given as a base and is none: a LoRA, an embedding, a VAE, another family's file. Each is called by name."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

from limner.errors import UserError
from limner.families.weights import Header, read_header

WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL", 1280: "SDXL"}
LORA = re.compile(
    r"lora_(up|down|A|B|mid)\b|\.lora\.|hada_w|lokr_w|oft_blocks|oft_diag|dora_scale|\.diff(_b)?$|\.on_input$|"
    r"\.a1\.weight$"
)
LORA_TEXT_INPUT = re.compile(r"attn2[._]to_[kv].*(lora_down|lora_A|lora\.down|lora_linear_layer\.down|hada_w1_b)")
SECOND_ENCODER = re.compile(r"lora_te2_|text_encoder_2\.")


def refuse_what_is_no_base(name: str, path: Path, header: Header | None = None) -> NoReturn:
    """Raise with what a file, or a folder without model_index.json, is instead of a base."""
    if header is None:
        _refuse_folder(name, path)
    found = what_is(header)
    if found:
        what, hint = found
        raise UserError(f"base={name!r}: is {what}, not a base.", hint)
    first = min(header.shapes, default="none")
    raise UserError(
        f"base={name!r}: is no model that Limner knows (its first tensor: {first}).", "Give an SD 1.5 or SDXL model."
    )


def what_is(header: Header) -> tuple[str, str] | None:
    """Return what a file is that is no whole model of ours, with what to do; None for one that is not known."""
    return next((found for kind in (_lora, _embedding, _part, _other_family) if (found := kind(header))), None)


def _refuse_folder(name: str, folder: Path) -> NoReturn:
    if (folder / "recipe.toml").is_file():
        raise UserError(f"base={name!r}: is a run folder, not a base.", "Give the base that the run was made with.")
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        shown = read_header(files[0])
        if not any(key.startswith("model.diffusion_model.") for key in shown.shapes):
            refuse_what_is_no_base(name, files[0], shown)
    if files:
        raise UserError(
            f"base={name!r}: is a folder of weights files without model_index.json.", f"Give one file: {files[0]}"
        )
    raise UserError(
        f"base={name!r}: is no model folder (model_index.json is missing).",
        "Give a complete diffusers folder (with model_index.json, unet, vae, text_encoder, tokenizer, scheduler).",
    )


def is_lora(header: Header) -> bool:
    """Tell whether a file holds changes of layers, of whatever method and layout."""
    return any(LORA.search(key) for key in header.shapes)


def _lora(header: Header) -> tuple[str, str] | None:
    if not is_lora(header):
        return None
    width = lora_width(header)
    made_for = f" for {WIDTHS[width]} (cross-attention {width})" if width in WIDTHS else ""
    return f"a LoRA{made_for}", "Give the model that it was made for as the base, and the LoRA with --adapter."


def lora_width(header: Header) -> int:
    """Return the width of the text that a LoRA was trained on, 0 where it does not say."""
    width = next((shape[1] for key, shape in header.shapes.items() if LORA_TEXT_INPUT.search(key)), 0)
    named = "limner" not in header.metadata  # whose own files may be for a small base of the same names
    return width or (2048 if named and any(SECOND_ENCODER.search(key) for key in header.shapes) else 0)


def check_lora_family(path: Path, width: int, own_width: int) -> None:
    """Refuse a LoRA's file that was trained on text `width` wide (0: it does not say) for one `own_width` wide.

    Raises:
        UserError: names both families.
    """
    if width and width != own_width:
        raise UserError(
            f"{path}: is a LoRA for {WIDTHS.get(width, 'another family')} (cross-attention {width}); the base is "
            f"{WIDTHS.get(own_width, 'of another family')} ({own_width}).",
            "Use the base that it was trained on.",
        )


def _embedding(header: Header) -> tuple[str, str] | None:
    """Recognise the files of textual inversion: A1111's, diffusers' (one token, one tensor) and SDXL's two encoders."""
    known = {"emb_params", "clip_l", "clip_g", "string_to_param.*"} & header.shapes.keys()
    alone = len(header.shapes) == 1 and not any("." in key for key in header.shapes)
    if not known and not alone:
        return None
    shapes = [header.shapes[key] for key in sorted(known or header.shapes)]
    widths = [shape[len(shape) - 1] for shape in shapes if len(shape) in (1, 2)]
    if not widths or not set(widths) <= WIDTHS.keys():
        return None
    vectors = shapes[0][0] if len(shapes[0]) == 2 else 1
    family = "SDXL" if "clip_g" in known else WIDTHS[widths[0]]
    size = f"{vectors} {'vector' if vectors == 1 else 'vectors'} of width {' and '.join(map(str, widths))}"
    return (
        f"a textual inversion embedding for {family} ({size})",
        "Give the model that it was made for as the base.",
    )


def _part(header: Header) -> tuple[str, str] | None:
    """Recognise one part of a model: a VAE, a ControlNet, a UNet or a text encoder alone."""
    keys = {key.removeprefix("first_stage_model.").removeprefix("vae.") for key in header.shapes}
    hint = "Give the whole model: a diffusers folder or a single .safetensors file."
    if {"encoder.conv_in.weight", "decoder.conv_in.weight"} <= keys:
        return "a VAE alone (SD 1.x, SD 2.x and SDXL share its shape)", hint
    if any(key.startswith(("control_model.", "controlnet_cond_embedding.")) for key in keys):
        return "a ControlNet", hint
    if "conv_in.weight" in keys and any(key.startswith("down_blocks.") for key in keys):
        return "a UNet alone", hint
    if any(key.endswith("embeddings.token_embedding.weight") for key in keys):
        return "a text encoder alone", hint
    return None


def _other_family(header: Header) -> tuple[str, str] | None:
    """Name a model of another family, as far as diffusers knows it by its keys."""
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    shapes = {key: SimpleNamespace(shape=shape) for key, shape in header.shapes.items()}
    try:
        kind = infer_diffusers_model_type(shapes)
    except (KeyError, IndexError, UnboundLocalError):  # made for whole checkpoints; a part can confuse it
        return None
    return None if kind == "v1" else (f"a model of another family ({kind})", "Give an SD 1.5 or SDXL model.")
