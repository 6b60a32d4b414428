"""What one decoded picture tells: size, likeness, sharpness, where its subject is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from limner.errors import UserError
from limner.pictures.cache import key_of
from limner.pictures.decode import BadPicture, Decoded, decode_bytes, read_through
from limner.pictures.picture import Picture
from limner.pictures.spec import Pictures
from limner.prepare.facts import Look, Looks

_KINDS = {"jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF", "heif": "HEIF", "heic": "HEIF", "jxl": "JXL"}


SIDE_PX = 256
"""Longer side of the picture that the facts are taken from."""
CLEARLY_BRIGHTER = 3
"""Grey levels, of 255; what compression changes is less."""


@dataclass(frozen=True)
class Seen:
    """The pixels of one picture, and where its loss counts."""

    rgb: Image.Image
    mask: Image.Image | None


def look_at(picture: Picture, spec: Pictures, known: Looks | None = None) -> Look:
    """Decode a picture fully (and its mask) and return its facts, unless they are known."""
    try:
        data = read_through(picture.read)
        mask_data = read_through(picture.mask.read_bytes) if picture.mask and spec.masks else None
    except BadPicture as bad:
        return Look(problem=str(bad))
    sha256 = hashlib.sha256(data).hexdigest()
    mask_sha256 = hashlib.sha256(mask_data).hexdigest() if mask_data else ""
    if known is None:
        return _look_at_bytes(picture, spec, data, mask_data, (sha256, mask_sha256))
    key = key_of(
        "look",
        bytes=[sha256, mask_sha256],
        ending=picture.name.rpartition(".")[2].lower(),
        settings=[spec.background, spec.alpha == "mask", spec.max_megapixels, spec.crop],
    )
    look = known.get(key)
    if look is None:
        look = _look_at_bytes(picture, spec, data, mask_data, (sha256, mask_sha256))
        if not look.problem:
            known.put(key, look)
    return look


def _look_at_bytes(
    picture: Picture, spec: Pictures, data: bytes, mask_data: bytes | None, hashes: tuple[str, str]
) -> Look:
    try:
        decoded = decode_bytes(
            data, background=spec.background, max_megapixels=spec.max_megapixels, shortest_px=SIDE_PX
        )
        mask = decoded.alpha if spec.alpha == "mask" else None
        if mask_data is not None and picture.mask is not None:
            mask = decode_mask(mask_data, decoded.size, picture.mask.name)
    except BadPicture as bad:
        return Look(hashes[0], problem=str(bad))
    grey = _small_grey(decoded.rgb)
    return Look(
        sha256=hashes[0],
        size=decoded.size,
        notes=(*_disguise(picture, decoded), *decoded.notes),
        has_alpha=decoded.alpha is not None,
        likeness=likeness(grey),
        blur=blur(grey),
        centre=_centre(grey, mask) if spec.crop == "subject" else (0.5, 0.5),
        mask_sha256=hashes[1],
    )


def look_again(picture: Picture, spec: Pictures, *, sha256: str, mask_sha256: str, shortest_px: int) -> Seen:
    """Return the pixels of a picture that was looked at; a UserError when its files are no longer the same.

    They may come reduced: the shorter side has at least `shortest_px`, or as many pixels as there are.
    """
    try:
        data = _unchanged(picture.read, sha256)
        decoded = decode_bytes(
            data, background=spec.background, max_megapixels=spec.max_megapixels, shortest_px=shortest_px
        )
        if mask_sha256 and picture.mask:
            mask_data = _unchanged(picture.mask.read_bytes, mask_sha256)
            return Seen(decoded.rgb, decode_mask(mask_data, decoded.size, picture.mask.name))
        return Seen(decoded.rgb, decoded.alpha if spec.alpha == "mask" else None)
    except BadPicture as bad:
        raise UserError(f"{picture.path}: {bad}.", "Start the run again.") from bad


def _unchanged(read: Callable[[], bytes], sha256: str) -> bytes:
    data = read_through(read)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BadPicture("changed since it was checked")
    return data


def decode_mask(data: bytes, size: tuple[int, int], name: str) -> Image.Image:
    """Return a mask (mode L, white where the loss counts); it must have the picture's shape and some white."""
    try:
        mask = decode_bytes(data, background="black").rgb.convert("L")
    except BadPicture as bad:
        raise BadPicture(f"its mask {name}: {bad}") from bad
    if abs(mask.width / mask.height - size[0] / size[1]) > 0.02 * size[0] / size[1]:
        found = f"is {mask.width}×{mask.height}, the picture {size[0]}×{size[1]}"
        raise BadPicture(f"its mask {name} {found}: they must have the same shape")
    if mask.getextrema()[1] == 0:
        raise BadPicture(f"its mask {name} is black everywhere: nothing would be learned")
    return mask


def _small_grey(image: Image.Image) -> Image.Image:
    grey = image.convert("L")
    grey.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX, reducing_gap=2.0)
    return grey


def likeness(image: Image.Image) -> int:
    """Return a difference hash: 64 bits, each whether a cell's right neighbour in a coarse grid is clearly brighter."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX, reducing_gap=2.0), dtype=np.int16)
    if int(grey.max()) - int(grey.min()) < 4:
        return 0
    bits = (grey[:, 1:] - grey[:, :-1] > CLEARLY_BRIGHTER).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def blur(image: Image.Image) -> float:
    """Return the no-reference blur measure of Crété et al. (2007), at 256 pixels: near 1, blurring changes nothing."""
    values = np.asarray(_small_grey(image), dtype=np.float32)
    worst = 0.0
    for axis in (0, 1):
        sharp = np.abs(np.diff(values, axis=axis))
        soft = np.abs(np.diff(ndimage.uniform_filter1d(values, 11, axis=axis), axis=axis))
        total = float(sharp.sum())
        if total:
            worst = max(worst, 1 - float(np.maximum(sharp - soft, 0).sum()) / total)
    return worst


def _disguise(picture: Picture, decoded: Decoded) -> tuple[str, ...]:
    ending = picture.name.rpartition(".")[2].lower()
    if "." not in picture.name or _KINDS.get(ending, ending.upper()) == decoded.format:
        return ()
    return (f"is really a {decoded.format} (accepted)",)


def _centre(image: Image.Image, mask: Image.Image | None) -> tuple[float, float]:
    """Return the centre of mass of the mask, or of what stands out (spectral residual, Hou and Zhang 2007)."""
    if mask is not None:
        weight = np.asarray(mask.resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    else:
        grey = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX, reducing_gap=2.0), dtype=np.float64)
        if grey.max() - grey.min() < 4:
            return (0.5, 0.5)
        spectrum = np.fft.fft2(grey)
        amplitude = np.log(np.abs(spectrum) + 1e-9)
        residual = amplitude - ndimage.uniform_filter(amplitude, 3, mode="wrap")
        standing_out = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
        weight = np.asarray(ndimage.gaussian_filter(standing_out, 3))
        weight = np.maximum(weight - np.quantile(weight, 0.8), 0)
    total = float(weight.sum())
    if not total:
        return (0.5, 0.5)
    places = (np.arange(64) + 0.5) / 64
    x, y = float(weight.sum(axis=0) @ places) / total, float(weight.sum(axis=1) @ places) / total
    return (round(x, 4), round(y, 4))
