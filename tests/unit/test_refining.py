"""A base and a refiner that draw together: what fits is known from headers; what a refiner learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from limner.errors import UserError
from limner.recipe import Recipe, load_recipe
from limner.refining import check_partner, suited
from limner.watch import Watch


class Said(Watch):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def recipe(base: Path, **settings: Any) -> Recipe:
    named = {
        key.replace("__", "."): str(value) if isinstance(value, Path) else value for key, value in settings.items()
    }
    return load_recipe(None, {"base": str(base), "pictures.class_noun": "dog", **named})


def test_a_base_and_a_refiner_fit_together(random_xl: Path, random_refiner: Path) -> None:
    check_partner(recipe(random_xl))
    check_partner(recipe(random_xl, generation__refiner=random_refiner))
    check_partner(recipe(random_refiner, generation__begun_by=random_xl))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"scaling_factor": 0.18215},
            r"latents \(4 channels, 4 px, scale 0.18215\) are not those of base=.*scale 0.13025",
        ),
        ({"latent_channels": 16}, r"latents \(16 channels, 4 px"),
        ({"block_out_channels": [8, 8, 8, 8]}, r"latents \(4 channels, 8 px"),
    ],
)
def test_a_refiner_with_another_vae_is_refused_without_reading_weights(
    change: dict[str, Any], message: str, random_xl: Path, random_refiner: Path, tmp_path: Path
) -> None:
    other = tmp_path / "refiner"
    shutil.copytree(random_refiner, other, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((other / "vae/config.json").read_text())
    (other / "vae/config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=rf"^generation.refiner=.*: its {message}.* Use a base and a refiner with"):
        check_partner(recipe(random_xl, generation__refiner=other))


@pytest.mark.parametrize(("handover", "steps", "idle"), [(0.999, 25, "refiner"), (0.01, 25, "base")])
def test_a_handover_that_leaves_one_nothing_is_refused(
    handover: float, steps: int, idle: str, random_xl: Path, random_refiner: Path
) -> None:
    asked = recipe(random_xl, generation__refiner=random_refiner, generation__handover=handover,
                   generation__num_inference_steps=steps)  # fmt: skip
    with pytest.raises(UserError, match=f"generation.handover={handover}: of {steps} steps the {idle} takes none"):
        check_partner(asked)


def test_only_a_refiner_learns_in_its_own_part_of_the_noise(random_xl: Path, random_refiner: Path) -> None:
    watch = Said()
    plain = recipe(random_xl)
    assert suited(plain, watch) is plain
    assert watch.lines == []
    found = suited(recipe(random_refiner, generation__begun_by=random_xl), watch)
    assert found.objective.timestep_range == (0.0, 0.2)
    assert watch.lines == ["objective.timestep_range=[0, 0.2]: the noise that a refiner is made for"]


def test_the_range_that_was_asked_for_is_kept(random_xl: Path, random_refiner: Path) -> None:
    for asked in ([0.0, 1.0], [0.1, 0.3]):
        watch = Said()
        own = recipe(random_refiner, generation__begun_by=random_xl, objective__timestep_range=asked)
        assert suited(own, watch) == own
        assert watch.lines == []


def test_a_handover_before_what_is_trained_is_said(random_xl: Path, random_refiner: Path) -> None:
    watch = Said()
    suited(recipe(random_refiner, generation__begun_by=random_xl, generation__handover=0.6), watch)
    assert watch.lines[-1] == ("generation.handover=0.6 hands over noisier pictures (0.4) than are trained "
                               "(objective.timestep_range up to 0.2)")  # fmt: skip


def test_a_refiner_that_draws_nothing_trains_alone_and_says_what_that_means(random_refiner: Path) -> None:
    watch = Said()
    suited(recipe(random_refiner), watch)
    assert watch.lines[0].startswith("the refiner cannot begin a picture: without generation.begun_by=BASE this run")
    suited(recipe(random_refiner, prior__enabled=True), Said(), class_pictures=True)
    with pytest.raises(UserError, match="^prior.enabled=true without --class-pictures: .* cannot begin a picture"):
        suited(recipe(random_refiner, prior__enabled=True), Said())
