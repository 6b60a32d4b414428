"""The one decoder of picture files: upright sRGB pixels, or the reason why there are none."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor

_LIMIT_LOCK = threading.Lock()
_EXIF_ORIENTATION = 0x0112
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_PICTURE_MARKS = (b"\x89PNG", b"\xff\xd8", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_FOREIGN = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<svg": "an SVG drawing; export it as PNG",
    b"<?xml": "an XML file",
    b"%pdf": "a PDF file",
    b"pk\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"version https://git-lfs": "a Git LFS pointer; fetch the real file with: git lfs pull",
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class BadPicture(Exception):
    """A file that cannot be used as a picture; its text is the reason, without the file's name."""


@dataclass(frozen=True)
class Decoded:
    """One decoded picture, upright."""

    rgb: Image.Image
    """sRGB, transparent parts composited on the background colour."""
    size: tuple[int, int]
    """Width and height in the file; those of `rgb`, unless it was asked for reduced."""
    alpha: Image.Image | None
    """Opacity (mode L), or None where every pixel is opaque."""
    format: str
    """What the file's content is, whatever its name says: "JPEG", "PNG" ..."""
    notes: tuple[str, ...]
    """What a careful user would want to know, such as "animated: the first of 12 frames is used"."""


def decode(path: Path, *, background: str = "white", max_megapixels: float = 200.0) -> Image.Image:
    """Return the picture in a file as upright sRGB; raise BadPicture with the reason when that is not possible."""
    with without_warnings():
        return decode_bytes(read_through(path.read_bytes), background=background, max_megapixels=max_megapixels).rgb


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence the decoding libraries, which warn about pictures that they read well. Not for use inside a thread."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_through(read: Callable[[], bytes]) -> bytes:
    """Return the bytes that `read` gives; raise BadPicture when that fails or there are none."""
    try:
        data = read()
    except OSError as error:
        raise BadPicture(f"cannot be read ({error.strerror or error})") from error
    if not data:
        raise BadPicture("0 bytes")
    return data


def decode_bytes(
    data: bytes, *, background: str = "white", max_megapixels: float = 200.0, shortest_px: int = 0
) -> Decoded:
    """Decode a picture file's bytes fully; raise BadPicture with the reason when that is not possible.

    With `shortest_px` a large JPEG comes out at a half, a quarter or an eighth, its shorter side no less than that:
    every byte is still read, but most of the arithmetic is saved. Safe to call from several threads, inside
    `without_warnings`.
    """
    image = _open(data)
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        size = f"{width}×{height} ({width * height / 1e6:.0f} MP)"
        raise BadPicture(f"{size} > pictures.max_megapixels={max_megapixels:g}")
    notes: list[str] = []
    try:
        factor = reduction(image.size, shortest_px) if shortest_px else 1
        if factor > 1:
            image.draft(None, (width // factor, height // factor))  # known to JPEG alone
        image.load()
        orientation = _orientation(image, notes)
        kind = "JPEG" if image.format == "MPO" else (image.format or "")
        if kind != "JPEG":
            _note_frames(image, notes)
        rgb, alpha = _to_srgb(image, notes)
    except BadPicture:
        raise
    except MemoryError:
        raise BadPicture(f"{width}×{height} does not fit into memory") from None
    except Exception as error:  # a decoder may raise anything on damaged bytes: all of it is the file's fault
        raise BadPicture(_reason(error, data)) from error
    if alpha is not None:
        if alpha.getextrema()[1] == 0:
            raise BadPicture("is transparent everywhere: there is nothing to see")
        canvas = Image.new("RGB", rgb.size, ImageColor.getrgb(background)[:3])
        canvas.paste(rgb, mask=alpha)
        rgb = canvas
    rgb, alpha = _turn(rgb, orientation), None if alpha is None else _turn(alpha, orientation)
    size = (height, width) if orientation in _SIDEWAYS else (width, height)
    return Decoded(rgb, size, alpha, kind, tuple(notes))


def reduction(size: tuple[int, int], shortest_px: int) -> int:
    """Return by how much a JPEG may be reduced while it is decoded: 8, 4 or 2 where that divides both sides, or 1."""
    fitting = (f for f in (8, 4, 2) if size[0] % f == size[1] % f == 0 and min(size) // f >= shortest_px)
    return next(fitting, 1)


@contextmanager
def _no_library_limit() -> Iterator[None]:
    """Lift the library's own limit of pixels while a header is read; ours is checked right after."""
    with _LIMIT_LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def _register_plugins() -> frozenset[str]:
    """Register the optional decoders that are installed, and return their package names."""
    found = set()
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.add("pillow_heif")
    if importlib.util.find_spec("pillow_jxl"):
        importlib.import_module("pillow_jxl")  # importing it registers it
        found.add("pillow_jxl")
    return frozenset(found)


def _open(data: bytes) -> Image.Image:
    _register_plugins()
    try:
        with _no_library_limit():
            return Image.open(io.BytesIO(data))
    except Image.UnidentifiedImageError as error:
        raise BadPicture(_what_it_is(data)) from error
    except Exception as error:  # see decode_bytes
        raise BadPicture(_reason(error, data)) from error


def _what_it_is(data: bytes) -> str:
    """Say what bytes that no decoder knows are."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        has_plugin = "pillow_heif" in _register_plugins()
        return "damaged (HEIC)" if has_plugin else "HEIC needs the package pillow-heif (pip install 'limner[heif]')"
    if data[:2] == b"\xff\x0a" or data[:8] == b"\0\0\0\x0cJXL ":
        return "JPEG XL needs the package pillow-jxl-plugin (pip install pillow-jxl-plugin)"
    for signature, name in _FOREIGN.items():
        if head.startswith(signature):
            return f"is not a picture but {name}"
    if data.startswith(_PICTURE_MARKS) or data[4:12] in (b"ftypavif", b"ftypavis"):
        return f"truncated after {len(data)} bytes"
    if data[4:8] == b"ftyp":
        return "is not a picture but a video"
    if not data.strip(b"\0"):
        return f"holds nothing but {len(data)} zero bytes"
    if b"\0" not in data[:512]:
        return "is not a picture but text"
    return "is not a picture in any known format"


def _reason(error: Exception, data: bytes) -> str:
    text = str(error) or type(error).__name__
    if any(word in text.lower() for word in ("truncated", "unexpected end", "not enough", "incomplete")):
        return f"truncated after {len(data)} bytes"
    return f"damaged ({text.splitlines()[0]})"


def _orientation(image: Image.Image, notes: list[str]) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF must not cost the picture
        notes.append("EXIF data is damaged: rotation unknown, taken as upright")
        return 1
    return value if value in range(1, 9) else 1


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _note_frames(image: Image.Image, notes: list[str]) -> None:
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception:  # the first frame is whole; what follows is not ours
        notes.append("animated and damaged after its first frame: the first frame is used")
        return
    finally:
        image.seek(0)
        image.load()
    if frames > 1:
        notes.append(f"has {frames} frames: the first is used")


def _to_srgb(image: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """Return colours in sRGB and the opacity, None when opaque."""
    alpha = None
    if image.has_transparency_data and not image.mode.startswith(("I", "F")):
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema()[0] == 255:
            alpha = None
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _from_wide(image), None
    if image.mode == "LAB":
        return _converted(image, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))), alpha
    if profile:
        converted = _from_profile(image, profile, notes)
        if converted is not None:
            return converted, alpha
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB"), alpha


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    result = ImageCms.profileToProfile(
        image, profile, _srgb(), renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
    )
    assert result is not None, "profileToProfile returns None only when asked to work in place"
    return result


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _from_profile(image: Image.Image, data: bytes, notes: list[str]) -> Image.Image | None:
    """Convert from an embedded ICC profile; None when the colours are sRGB already or the profile is of no use."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        facts: Any = profile.profile
        space = facts.xcolor_space.strip()
        mode = _PROFILE_MODES.get(space)
        is_cmyk, is_grey = image.mode == "CMYK", image.mode in ("1", "L", "LA", "La")
        if mode is None or (mode == "CMYK") != is_cmyk or (mode == "L" and not is_grey):
            notes.append(f"colour profile is for {space}, the picture is {image.mode}: profile ignored")
            return None
        if mode == "RGB" and "srgb" in (facts.profile_description or "").lower():
            return None
        colours = image.convert("RGBA").convert("RGB") if mode == "RGB" else image.convert(mode)
        return _converted(colours, profile)
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.append("colour profile is damaged: ignored")
        return None


def _from_wide(image: Image.Image) -> Image.Image:
    """Scale a grey picture of 16-bit integers or of floats in [0, 1] to 8 bits."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (np.isfinite(values).all() and low >= 0 and high <= 1):
            raise BadPicture(f"has float values from {low:g} to {high:g}; only [0, 1] is understood")
        grey = np.rint(values * 255)
    else:
        if low < 0 or high > 65535:
            raise BadPicture(f"has integer values from {low} to {high}; only 16 bits (0 to 65535) are understood")
        grey = np.rint(values.astype(np.float64) / 257)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
