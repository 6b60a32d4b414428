"""Nasty picture files: how each is made, and what reading it gives. `python -m tests.corpus.files DIR` writes them."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Case:
    """One file: its bytes, and either the pixels that reading it gives or why it cannot be used."""

    data: bytes
    size: tuple[int, int] | None = None
    pixels: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)
    tolerance: int = 1
    note: str = ""
    """A part of one of the notes."""
    problem: str = ""
    """The exact reason; a regular expression where it begins with "^"."""


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Return a picture whose top left quarter is red, the rest blue."""
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    return image


def noise(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Return a picture that compresses badly."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def profile(*, swap: bool = False, name: str = "mine", space: str = "sRGB") -> bytes:
    """Return an ICC profile of sRGB's shape under another name, with red and green exchanged if asked."""
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = int.from_bytes(made[128:132], "big")
    tags = {made[i : i + 4]: i + 4 for i in range(132, 132 + 12 * count, 12)}
    changed = bytearray(made)
    if swap:
        red, green = tags[b"rXYZ"], tags[b"gXYZ"]
        changed[red : red + 8], changed[green : green + 8] = made[green : green + 8], made[red : red + 8]
    renamed = bytes(changed).replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))
    return renamed if space == "sRGB" else renamed[:16] + space.encode().ljust(4) + renamed[20:]


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """Return a PNG file from its raw rows, for kinds that the library does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    """Return EXIF data that says how a picture was held."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def _orientations() -> dict[str, Case]:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    cases = {}
    for orientation in range(1, 9):
        stored = corners().transpose(turns[orientation]) if orientation in turns else corners()
        data = save(stored, "JPEG", quality=100, subsampling=0, exif=exif(orientation))
        expected = {(3, 3): RED, (20, 3): BLUE, (3, 13): BLUE, (20, 13): BLUE}
        cases[f"held-{orientation}.jpg"] = Case(data, (24, 16), expected, 6)
    tiff = save(corners().transpose(Image.Transpose.ROTATE_90), "TIFF", exif=exif(6))
    cases["held-6.tif"] = Case(tiff, (24, 16), {(3, 3): RED, (20, 13): BLUE})
    return cases


def _transparent() -> dict[str, Case]:
    hidden = Image.new("RGBA", (8, 8), (*RED, 0))
    hidden.paste((*GREEN, 255), (0, 0, 4, 8))
    half = Image.new("RGBA", (8, 8), (*BLACK, 128))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([*BLUE, *RED])
    palette.paste(0, (0, 0, 4, 8))
    grey = Image.new("LA", (8, 8), (0, 0))
    grey.paste((0, 255), (0, 0, 4, 8))
    keyed = chunk(b"tRNS", struct.pack(">HHH", *RED))
    rows = (b"\0" + bytes(GREEN) * 4 + bytes(RED) * 4) * 8
    return {
        "hidden-red.png": Case(save(hidden, "PNG"), (8, 8), {(1, 1): GREEN, (6, 6): WHITE}),
        "hidden-red.webp": Case(
            save(hidden, "WEBP", lossless=True, exact=True), (8, 8), {(1, 1): GREEN, (6, 6): WHITE}
        ),
        "half-black.png": Case(save(half, "PNG"), (8, 8), {(4, 4): (127, 127, 127)}),
        "palette-key.png": Case(save(palette, "PNG", transparency=1), (8, 8), {(1, 1): BLUE, (6, 6): WHITE}),
        "palette-alpha.png": Case(
            save(palette, "PNG", transparency=b"\xff\x80"), (8, 8), {(1, 1): BLUE, (6, 6): (255, 127, 127)}
        ),
        "palette.gif": Case(save(palette, "GIF", transparency=1), (8, 8), {(1, 1): BLUE, (6, 6): WHITE}),
        "grey-alpha.png": Case(save(grey, "PNG"), (8, 8), {(1, 1): BLACK, (6, 6): WHITE}),
        "rgb-key.png": Case(
            png(8, 8, depth=8, colour=2, rows=rows, extra=keyed), (8, 8), {(1, 1): GREEN, (6, 6): WHITE}
        ),
        "invisible.png": Case(
            save(Image.new("RGBA", (8, 8), (*RED, 0)), "PNG"),
            problem="is transparent everywhere: there is nothing to see",
        ),
    }


def _modes() -> dict[str, Case]:
    ramp = np.array([[0, 257, 32896, 65535]], np.uint16)
    shades = {(0, 0): BLACK, (1, 0): (1, 1, 1), (2, 0): (128, 128, 128), (3, 0): WHITE}
    deep = b"\0" + b"".join(struct.pack(">HHH", v, 0, 65535) for v in (0, 32896, 65535))
    zero = Image.new("L", (8, 8), 128)
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    lab = Image.merge("LAB", (Image.new("L", (8, 8), 255), zero, zero))
    floats = np.array([[0, 0.5, 1]], np.float32)
    return {
        "one-bit.png": Case(save(Image.new("1", (8, 8), 1), "PNG"), (8, 8), {(4, 4): WHITE}),
        "grey-16.png": Case(save(Image.fromarray(ramp), "PNG"), (4, 1), shades, 0),
        "grey-16.tif": Case(save(Image.fromarray(ramp), "TIFF"), (4, 1), shades, 0),
        "grey-16-big-endian.tif": Case(
            save(Image.frombytes("I;16B", (4, 1), ramp.astype(">u2").tobytes()), "TIFF"), (4, 1), shades, 0
        ),
        "rgb-16.png": Case(
            png(3, 1, depth=16, colour=2, rows=deep),
            (3, 1),
            {(0, 0): BLUE, (1, 0): (128, 0, 255), (2, 0): (255, 0, 255)},
        ),
        "float.tif": Case(
            save(Image.fromarray(floats), "TIFF"), (3, 1), {(0, 0): BLACK, (1, 0): (128, 128, 128), (2, 0): WHITE}
        ),
        "float-hdr.tif": Case(
            save(Image.fromarray(floats * 7), "TIFF"),
            problem="has float values from 0 to 7; only [0, 1] is understood",
        ),
        "int-32.tif": Case(
            save(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF"),
            problem="has integer values from 0 to 70000; only 16 bits (0 to 65535) are understood",
        ),
        "cmyk.jpg": Case(save(cmyk, "JPEG", quality=100), (8, 8), {(4, 4): RED}, 3),
        "cmyk.tif": Case(save(cmyk, "TIFF"), (8, 8), {(4, 4): RED}),
        "lab.tif": Case(save(lab, "TIFF"), (8, 8), {(4, 4): WHITE}, 2),
        "one-pixel.png": Case(save(Image.new("RGB", (1, 1), RED), "PNG"), (1, 1), {(0, 0): RED}),
        "interlaced.png": Case(_interlaced(), (8, 8), {(0, 0): GREEN, (7, 7): GREEN}),
        "progressive.jpg": Case(
            save(corners(), "JPEG", progressive=True, quality=100, subsampling=0), (24, 16), {(3, 3): RED}, 6
        ),
        "plain.bmp": Case(save(corners(), "BMP"), (24, 16), {(3, 3): RED, (20, 13): BLUE}),
        "plain.avif": Case(save(corners((64, 64)), "AVIF", quality=100), (64, 64), {(8, 8): RED, (60, 60): BLUE}, 12),
    }


def _interlaced() -> bytes:
    """Return an Adam7 PNG of 8 × 8 green pixels: seven passes of 1, 1, 2, 4, 8, 16 and 32 pixels."""
    passes = [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]
    rows = b"".join((b"\0" + bytes(GREEN) * width) * height for width, height in passes)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 1)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _profiles() -> dict[str, Case]:
    red = Image.new("RGB", (8, 8), RED)
    transparent = Image.new("RGBA", (8, 8), (*RED, 255))
    transparent.putpixel((7, 7), (0, 0, 0, 0))
    swapped = profile(swap=True)
    return {
        "other-primaries.png": Case(save(red, "PNG", icc_profile=swapped), (8, 8), {(4, 4): GREEN}, 3),
        "other-primaries.jpg": Case(
            save(red, "JPEG", quality=100, subsampling=0, icc_profile=swapped), (8, 8), {(4, 4): GREEN}, 6
        ),
        "other-primaries-alpha.png": Case(
            save(transparent, "PNG", icc_profile=swapped), (8, 8), {(1, 1): GREEN, (7, 7): WHITE}, 3
        ),
        "damaged-profile.png": Case(
            save(red, "PNG", icc_profile=b"garbage"), (8, 8), {(4, 4): RED}, note="colour profile is damaged: ignored"
        ),
        "profile-of-another-kind.png": Case(
            save(red, "PNG", icc_profile=profile(space="CMYK")), (8, 8), {(4, 4): RED}, note="profile"
        ),
        "srgb-profile.png": Case(
            save(red, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
            (8, 8), {(4, 4): RED}, 0,
        ),
    }  # fmt: skip


def _several_frames() -> dict[str, Case]:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    more = {"save_all": True, "append_images": frames[1:]}
    gif = save(noise(), "GIF", save_all=True, append_images=[noise().rotate(90)])
    first = frames[0].resize((16, 16))
    note = "has 3 frames: the first is used"
    return {
        "moving.gif": Case(save(frames[0], "GIF", **more), (8, 8), {(4, 4): RED}, note=note),
        "moving.png": Case(save(frames[0], "PNG", **more), (8, 8), {(4, 4): RED}, note=note),
        "moving.webp": Case(save(frames[0], "WEBP", lossless=True, **more), (8, 8), {(4, 4): RED}, note=note),
        "pages.tif": Case(save(frames[0], "TIFF", **more), (8, 8), {(4, 4): RED}, note=note),
        "phone.jpg": Case(save(first, "MPO", save_all=True, append_images=[first]), (16, 16), {(4, 4): RED}, 3),
        "cut-in-second-frame.gif": Case(gif[:-400], (64, 64), note="the first"),
    }


def _damaged() -> dict[str, Case]:
    whole_png, whole_jpg = save(noise(), "PNG"), save(noise(), "JPEG")
    flipped = bytearray(whole_png)
    flipped[len(flipped) // 2] ^= 0xFF
    bad_exif = save(corners(), "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0II*\0" + b"\xff" * 40)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 5_000_000, zip=True)
    return {
        "zero.jpg": Case(b"", problem="0 bytes"),
        "cut.png": Case(whole_png[:4339], problem="truncated after 4339 bytes"),
        "cut.jpg": Case(whole_jpg[: len(whole_jpg) // 2], problem=f"truncated after {len(whole_jpg) // 2} bytes"),
        "cut.bmp": Case(save(noise(), "BMP")[:5000], problem="truncated after 5000 bytes"),
        "cut.gif": Case(save(noise(), "GIF")[:1500], problem="truncated after 1500 bytes"),
        "cut.webp": Case(save(noise(), "WEBP")[:700], problem="^(truncated|damaged)"),
        "cut.avif": Case(save(noise(), "AVIF")[:700], problem="^(truncated|damaged)"),
        "cut.tif": Case(save(noise(), "TIFF")[:5000], problem="^(truncated|damaged)"),
        "only-a-header.png": Case(whole_png[:20], problem="truncated after 20 bytes"),
        "flipped-bits.png": Case(bytes(flipped), problem="^damaged"),
        "garbage-behind.jpg": Case(whole_jpg + b"garbage" * 99, (64, 64)),
        "damaged-exif.jpg": Case(bad_exif, (24, 16), {(3, 3): RED}, 6),
        "huge-comment.png": Case(save(corners(), "PNG", pnginfo=text), problem="^damaged"),
        "gigantic.png": Case(
            png(30000, 30000, depth=1, colour=0, rows=b""),
            problem="30000×30000 (900 MP) > pictures.max_megapixels=200",
        ),
        "zeros.png": Case(b"\0" * 4096, problem="holds nothing but 4096 zero bytes"),
        "random.jpg": Case(np.random.default_rng(1).bytes(4096), problem="is not a picture in any known format"),
    }


def _disguised() -> dict[str, Case]:
    video = b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0" * 64
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64
    return {
        "text.jpg": Case(b"my dog on the beach\n", problem="is not a picture but text"),
        "page.jpg": Case(b"<!DOCTYPE html><html>404</html>", problem="is not a picture but a web page"),
        "drawing.png": Case(
            b'<svg xmlns="http://www.w3.org/2000/svg"/>',
            problem="is not a picture but an SVG drawing; export it as PNG",
        ),
        "paper.png": Case(b"%PDF-1.7\n", problem="is not a picture but a PDF file"),
        "archive.png": Case(b"PK\x03\x04" + b"\0" * 40, problem="is not a picture but a zip archive"),
        "pointer.png": Case(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            problem="is not a picture but a Git LFS pointer; fetch the real file with: git lfs pull",
        ),
        "video.jpg": Case(video, problem="is not a picture but a video"),
        "phone.heic": Case(heic, problem="^(HEIC needs the package pillow-heif|damaged)"),
        "new.jxl": Case(
            b"\xff\x0a" + b"\0" * 40, problem="^(JPEG XL needs the package pillow-jxl-plugin|damaged|truncated)"
        ),
        "really-webp.jpg": Case(
            save(corners(), "WEBP", lossless=True), (24, 16), {(3, 3): RED}, note="is really a WEBP"
        ),
        "really-png.gif": Case(save(corners(), "PNG"), (24, 16), {(3, 3): RED}, note="is really a PNG (accepted)"),
    }


def cases() -> dict[str, Case]:
    """Return every nasty file by name."""
    parts: list[Callable[[], dict[str, Case]]] = [
        _orientations, _transparent, _modes, _profiles, _several_frames, _damaged, _disguised,
    ]  # fmt: skip
    return {name: case for part in parts for name, case in part().items()}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for file_name, one in cases().items():
        (target / file_name).write_bytes(one.data)
