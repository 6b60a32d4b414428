from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest
import torch
from transformers import CLIPModel

from limner.errors import UserError
from limner.evaluate.images import load_pixels
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.image_text import ImageText
from limner.metrics.lite0 import Lite0
from limner.metrics.luminance_gradient import LuminanceGradient
from limner.metrics.similarity import cosines
from tests.encoders import make_clip


def plain(colour: tuple[float, float, float], side: int = 16) -> torch.Tensor:
    """Return a picture of one colour, channels in [-1, 1]."""
    return torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, side, side).contiguous()


def test_histogram_of_one_colour_is_one_cell() -> None:
    found = ColourHistogram()(plain((1, -1, -1)))
    assert found.shape == (1, 64)
    assert found.sum() == 1
    assert found[0, 3 * 16] == 1


def test_histograms_of_different_colours_share_nothing_and_half_and_half_is_known() -> None:
    red, green = plain((1, -1, -1)), plain((-1, 1, -1))
    both = torch.cat([red[..., :8], green[..., 8:]], dim=-1)
    found = cosines(ColourHistogram()(torch.cat([red, both])), ColourHistogram()(torch.cat([red, green])))
    half = 0.5**0.5
    assert torch.allclose(found, torch.tensor([[1.0, 0.0], [half, half]]).double(), atol=1e-6)


def test_histogram_does_not_know_where_a_colour_is() -> None:
    pixels = torch.rand(2, 3, 8, 8) * 2 - 1
    assert torch.equal(ColourHistogram()(pixels), ColourHistogram()(pixels.flip(-1)))


def test_lite0_knows_a_picture_of_another_size_again() -> None:
    torch.manual_seed(0)
    small = torch.nn.functional.interpolate(torch.rand(4, 3, 6, 6) * 2 - 1, (64, 64), mode="bicubic").clamp(-1, 1)
    large = torch.nn.functional.interpolate(small, (128, 128), mode="bicubic", antialias=True).clamp(-1, 1)
    encode = Lite0()
    found = cosines(encode(small), encode(large))
    assert found.diag().min() > 0.9
    assert torch.equal(found.argmax(1), torch.arange(4))


def test_lite0_sees_a_photograph_as_its_authors_meant() -> None:
    # Wrong weights, wrong normalisation or wrong channel order would not find the uniform in this portrait.
    photograph = load_pixels(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")[None]
    encode = Lite0()
    inputs = torch.nn.functional.interpolate(photograph, (192, 192), mode="bicubic", antialias=True).clamp(-1, 1)
    maps = encode.model.extract_features((inputs * 127.5 + 127.5 - 127) / 128)
    assert encode.model._fc(maps.mean((-2, -1))).argmax() == 652  # ImageNet's "military uniform"
    assert torch.allclose(maps.amax((-2, -1)), encode(photograph), atol=1e-4)


def test_lite0_tells_the_shipped_subjects_apart_where_colours_do_not(root: Path) -> None:
    paths = sorted((root / "src/limner/assets/demo").glob("*/*.png"))
    assert len(paths) >= 20
    subject = [path.parent.name for path in paths]
    pixels = torch.stack([load_pixels(path) for path in paths])
    small = torch.nn.functional.interpolate(pixels, (64, 64), mode="area")
    right = {}
    for encode in (Lite0(), ColourHistogram()):
        features = encode(small)
        nearest = (cosines(features, features) - 2 * torch.eye(len(paths))).argmax(1)
        right[encode.name] = sum(subject[i] == subject[j] for i, j in enumerate(nearest)) / len(paths)
    assert right["lite0"] >= 0.95, right
    assert right["colour_histogram"] <= 0.5, right


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small CLIP with random weights, as people keep one on disk."""
    return make_clip(tmp_path_factory.mktemp("clip"))


def test_an_image_text_encoder_is_what_transformers_computes(clip_folder: Path) -> None:
    encode = ImageText(clip_folder, name="clip_test")
    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    pictures = ((pixels + 1) * 127.5).round() / 255
    mean, std = (
        torch.tensor(v).view(3, 1, 1)
        for v in (encode.preprocessing.processor.image_mean, encode.preprocessing.processor.image_std)
    )
    with torch.inference_mode():
        by_hand = model.get_image_features(pixel_values=(pictures - mean) / std).pooler_output
        tokens = encode.tokenizer("a red cat", return_tensors="pt")
        text = model.get_text_features(**tokens).pooler_output
    assert torch.allclose(encode(pixels), by_hand, atol=1e-4)
    assert torch.allclose(encode.encode_text(["a red cat", "dog"])[:1], text, atol=1e-5)


def test_a_long_prompt_is_cut_and_prompts_do_not_touch_each_other(clip_folder: Path) -> None:
    encode = ImageText(clip_folder)
    prompts = ["a", "a very long prompt with many words in it", "z z"]
    together = encode.encode_text(prompts)
    assert torch.allclose(together, torch.cat([encode.encode_text([p]) for p in prompts]), atol=1e-6)


def test_an_image_text_encoder_knows_its_weights(clip_folder: Path) -> None:
    one = ImageText(clip_folder)
    assert one.identity == ImageText(clip_folder).identity
    assert len(one.identity) == 16
    assert "CLIPModel" in one.about


def test_a_folder_without_an_encoder_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded as an image-text encoder"):
        ImageText(tmp_path)


def test_the_gradient_of_a_ramp_is_its_slope_and_of_a_plain_picture_nothing() -> None:
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    found = LuminanceGradient()(torch.cat([plain((0.5, -1, 1)), ramp, ramp.mT]))
    assert torch.allclose(found, torch.tensor([[0.0], [1 / 30], [1 / 30]]))  # half of it: across, and not down


def test_the_gradient_sees_green_more_than_blue() -> None:
    steps = torch.tensor([-1.0, 1.0]).repeat(8).expand(16, 16)
    stripes = torch.stack([torch.zeros(3, 16, 16)] * 3)
    for channel in range(3):
        stripes[channel, channel] = steps
    assert torch.allclose(LuminanceGradient()(stripes)[:, 0], torch.tensor([0.299, 0.587, 0.114]) / 2)
