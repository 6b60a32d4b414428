"""One decoder: what is seen in a photo viewer is what is trained on."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from limner.pictures.decode import BadPicture, decode, decode_bytes, reduction
from limner.pictures.fit import fit_to


def corners(size=(24, 16)) -> Image.Image:
    """Return a picture whose top left quarter is red, the rest blue."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0] // 2, size[1] // 2))
    return image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def near(pixel: tuple[int, ...], expected: tuple[int, ...], tolerance: int = 1) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_undone(kind, orientation):
    upright = corners()
    turn = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind in ("JPEG", "WEBP") else {}
    decoded = decode_bytes(encoded(stored, kind, exif=exif.tobytes(), **options)).rgb
    assert decoded.size == upright.size
    assert near(decoded.getpixel((3, 3)), (255, 0, 0), 8)
    for place in ((20, 3), (3, 12), (20, 12)):
        assert near(decoded.getpixel(place), (0, 0, 255), 8)


def test_hidden_colour_does_not_leak_through_transparency():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 255, 0, 255), (0, 0, 4, 8))
    data = encoded(image, "PNG")
    assert decode_bytes(data).rgb.getpixel((6, 6)) == (255, 255, 255)
    assert decode_bytes(data, background="#102030").rgb.getpixel((6, 6)) == (16, 32, 48)
    assert decode_bytes(data).rgb.getpixel((1, 1)) == (0, 255, 0)
    alpha = decode_bytes(data).alpha
    assert alpha is not None
    assert alpha.getpixel((1, 1)) == 255
    assert alpha.getpixel((6, 6)) == 0


def test_opaque_alpha_is_no_alpha():
    assert decode_bytes(encoded(corners().convert("RGBA"), "PNG")).alpha is None


@pytest.mark.parametrize("mode", ["P", "L", "1", "LA", "CMYK", "YCbCr", "LAB", "I;16"])
def test_every_colour_mode_becomes_rgb(mode):
    grey = Image.new("L", (8, 8), 255)
    kind = "JPEG" if mode in ("YCbCr",) else "TIFF"
    if mode == "I;16":
        image = Image.fromarray(np.full((8, 8), 65535, np.uint16))
    elif mode == "LAB":
        image = Image.merge("LAB", (grey, Image.new("L", (8, 8), 128), Image.new("L", (8, 8), 128)))
    elif mode == "YCbCr":
        image = Image.new("YCbCr", (8, 8), (255, 128, 128))
    else:
        image = Image.new("RGB", (8, 8), "white").convert(mode)
    decoded = decode_bytes(encoded(image, kind))
    assert decoded.rgb.mode == "RGB"
    assert near(decoded.rgb.getpixel((4, 4)), (255, 255, 255), 2)


def test_sixteen_bits_are_scaled_and_not_clipped():
    image = Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16))
    assert [p[0] for p in decode_bytes(encoded(image, "PNG")).rgb.get_flattened_data()] == [0, 1, 128, 255]


def test_float_tiff_beyond_one_is_refused():
    good = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert [p[0] for p in decode_bytes(encoded(good, "TIFF")).rgb.get_flattened_data()] == [0, 128, 255]
    bad = Image.fromarray(np.array([[0, 0.5, 7]], np.float32))
    with pytest.raises(BadPicture, match=r"float values from 0 to 7; only \[0, 1\] is understood"):
        decode_bytes(encoded(bad, "TIFF"))


def test_embedded_profile_is_converted_to_srgb():
    """Swapped primaries: a profile whose red is sRGB's green must turn red into green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    count = int.from_bytes(profile[128:132], "big")
    tags = {profile[i : i + 4]: i + 4 for i in range(132, 132 + 12 * count, 12)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    swapped = bytearray(profile)
    swapped[red : red + 8], swapped[green : green + 8] = profile[green : green + 8], profile[red : red + 8]
    named = bytes(swapped).replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    data = encoded(Image.new("RGB", (8, 8), "red"), "PNG", icc_profile=named)
    assert near(decode_bytes(data).rgb.getpixel((4, 4)), (0, 255, 0), 3)


def test_damaged_profile_costs_a_note_and_not_the_picture():
    decoded = decode_bytes(encoded(corners(), "PNG", icc_profile=b"garbage"))
    assert decoded.rgb.getpixel((2, 2)) == (255, 0, 0)
    assert decoded.notes == ("colour profile is damaged: ignored",)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        lossless = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        decoded = decode_bytes(data)
        assert near(decoded.rgb.getpixel((4, 4)), (255, 0, 0)), kind
        assert decoded.notes == ("has 3 frames: the first is used",), kind


def test_limit_of_pixels_is_checked_before_decoding():
    data = encoded(Image.new("1", (4000, 3000)), "PNG")
    with pytest.raises(BadPicture, match=r"4000×3000 \(12 MP\) > pictures.max_megapixels=10"):
        decode_bytes(data, max_megapixels=10.0)
    assert decode_bytes(data, max_megapixels=12.0).rgb.size == (4000, 3000)


def test_decoding_needs_no_library_limit():
    """A picture of 200 megapixels is beyond the library's own limit, not beyond ours."""
    limit = Image.MAX_IMAGE_PIXELS
    header = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    header[16:24] = (30000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(BadPicture, match=r"30000×30000 \(900 MP\) > pictures.max_megapixels=200"):
        decode_bytes(bytes(header))
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("shortest_px", [0, 8])
def test_truncated_files_are_named_as_such(kind, share, shortest_px):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    data = data[: int(len(data) * share)]
    with pytest.raises(BadPicture, match="truncated|damaged|not a picture"):
        decode_bytes(data, shortest_px=shortest_px)


def test_a_reduced_jpeg_is_the_same_picture_once_it_is_resized():
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(coarse.resize((1024, 768), Image.Resampling.BICUBIC), "JPEG", quality=92, exif=exif.tobytes())
    whole, fit = decode_bytes(data), fit_to((768, 1024), (64, 64))
    reduced = decode_bytes(data, shortest_px=fit.shortest_px)
    assert whole.size == whole.rgb.size == reduced.size == (768, 1024)
    assert reduced.rgb.size == (192, 256)
    pair = [np.asarray(fit.apply(one.rgb), dtype=float) for one in (whole, reduced)]
    assert np.abs(pair[0] - pair[1]).mean() < 1.0
    assert np.abs(pair[0] - pair[1]).max() < 16


def test_only_what_divides_is_reduced():
    assert reduction((4000, 3000), 300) == 8
    assert reduction((4000, 3000), 400) == 4
    assert reduction((4000, 3000), 1501) == 1
    assert reduction((4000, 3002), 100) == 2
    assert reduction((4000, 3001), 1) == 1


def test_decode_reads_a_file(tmp_path: Path):
    corners().save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png").getpixel((2, 2)) == (255, 0, 0)
    with pytest.raises(BadPicture, match="cannot be read"):
        decode(tmp_path / "b.png")
