"""Every metric, on every encoder that needs no download: perfect for itself, blind to order, deterministic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.encoder import ImageEncoder
from limner.metrics.few_steps import SHARPNESS, TEACHER_DISTANCE
from limner.metrics.lite0 import Lite0
from limner.metrics.luminance_gradient import LuminanceGradient
from limner.metrics.metric import Metric, View
from limner.metrics.questions import AESTHETIC, PREFERENCE, QUESTIONS
from limner.metrics.set_questions import SET_QUESTIONS

SETS = tuple(Metric(question, "any") for question in (*SET_QUESTIONS, TEACHER_DISTANCE))
METRICS = (*(Metric(question, "any") for question in (*QUESTIONS, PREFERENCE, SHARPNESS)), *SETS)
PERFECT_AT_ZERO = ("class_drift", "other_drift", "diversity", "copies", *(m.question.kind for m in SETS))
ENCODERS: dict[str, type[ImageEncoder]] = {
    "lite0": Lite0, "colour_histogram": ColourHistogram, "luminance_gradient": LuminanceGradient,
}  # fmt: skip

every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.question.kind)
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def view(images: int = 6) -> View:
    torch.manual_seed(1)
    return View(
        images=torch.randn(images, 8),
        base=torch.randn(images, 8),
        prompt=tuple(f"subject/{i // 2}" for i in range(images)),
        subject=torch.randn(4, 8),
        class_pictures=torch.randn(5, 8),
        text=torch.randn(images, 8),
        others=(torch.randn(3, 8), torch.randn(2, 8)),
        foreground=torch.rand(images, 2),
        own_foreground=torch.rand(2, 2),
    )


def test_keys_are_unique_and_carry_the_encoder() -> None:
    keys = [m.key for m in METRICS]
    assert len(set(keys)) == len(keys)
    assert all(key.endswith(".any") for key in keys)


@every_metric
def test_it_says_what_it_says(metric: Metric) -> None:
    assert metric.question.title
    assert metric.question.says.endswith(".")
    assert metric.question.sets


@every_metric
def test_one_value_an_image_and_the_same_twice(metric: Metric) -> None:
    values = metric.question.per_image(view())
    assert values.shape == (6,)
    assert torch.equal(values, metric.question.per_image(view()))


@every_metric
def test_shuffled_images_have_shuffled_values(metric: Metric) -> None:
    here, order = view(), torch.tensor([3, 0, 5, 1, 4, 2])
    assert here.text is not None
    assert here.foreground is not None
    shuffled = replace(
        here,
        images=here.images[order],
        base=here.base[order],
        prompt=tuple(here.prompt[i] for i in order),
        text=here.text[order],
        subject=here.subject.flip(0),
        foreground=here.foreground[order],
    )
    atol = 1e-6 if metric.question.kind == "class_fd" else 1e-10  # eight dimensions from six images
    assert torch.allclose(metric.question.per_image(here)[order], metric.question.per_image(shuffled), atol=atol)


@every_metric
def test_identical_pictures_have_the_perfect_value(metric: Metric) -> None:
    one = torch.randn(1, 8)
    same = View(
        images=one.repeat(6, 1),
        base=one.repeat(6, 1),
        prompt=("subject/0",) * 6,
        subject=one.repeat(4, 1),
        class_pictures=one.repeat(5, 1),
        text=one.repeat(6, 1),
        others=(-one,),
        foreground=torch.ones(6, 2),
    )
    perfect = 0.0 if metric.question.kind in PERFECT_AT_ZERO else 1.0
    assert torch.allclose(metric.question.per_image(same), torch.full((6,), perfect, dtype=torch.float64), atol=1e-12)


@every_metric
def test_levels_are_on_the_metrics_own_scale(metric: Metric) -> None:
    for level in metric.levels(view()):
        assert math.isfinite(level.value) if metric in SETS else -1 <= level.value <= 2
        assert level.pairs > 0


@pytest.mark.parametrize("metric", SETS, ids=lambda m: m.question.kind)
def test_a_set_compared_with_itself_is_at_distance_zero_to_the_last_bit(metric: Metric) -> None:
    here = view(20)
    assert not metric.question.per_image(replace(here, images=here.base.clone())).any()


@pytest.mark.parametrize("metric", SETS, ids=lambda m: m.question.kind)
def test_the_further_a_set_has_moved_the_higher_its_distance(metric: Metric) -> None:
    here = view(40)
    means = [
        float(metric.question.per_image(replace(here, images=here.base + shift)).mean()) for shift in (0.0, 1.0, 2.0)
    ]
    destroyed = float(metric.question.per_image(replace(here, images=torch.full((40, 8), 9.0))).mean())
    assert means == sorted(means)
    assert means[0] == 0
    assert destroyed > 0


def test_a_rating_is_taken_as_it_is() -> None:
    assert torch.equal(AESTHETIC.per_image(view()), view().images[:, 0].double())


@every_encoder
def test_an_encoder_gives_the_same_features_in_any_batch(encoder: str) -> None:
    encode = ENCODERS[encoder]()
    pixels = torch.rand(5, 3, 32, 40) * 2 - 1
    together = encode(pixels)
    alone = torch.cat([encode(p[None]) for p in pixels])
    assert together.shape[0] == 5
    assert together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(together, encode(pixels))


@every_encoder
def test_an_encoder_says_what_it_is(encoder: str) -> None:
    one, two = ENCODERS[encoder](), ENCODERS[encoder]()
    assert one.name == encoder
    assert one.about
    assert len(one.identity) == 16
    assert one.identity == two.identity
