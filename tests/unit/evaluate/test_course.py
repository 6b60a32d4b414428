"""A few-step run's course: which step it speaks for when pictures get sharper and nearer, and then worse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from limner.evaluate.course import Judges, until
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.course import Course
from limner.rundir import RunDir, write_json

UNTAUGHT = {"in 4 steps, drawn as the adapter is": "untaught", "in 4 steps, as usual": "untaught-own-sampler"}
PROMPTS, IMAGES, SIDE = 8, 2, 32


def blurred(radius: float) -> Callable[[Image.Image, int], Image.Image]:
    return lambda picture, seed: picture.filter(ImageFilter.GaussianBlur(radius))


def grainy(picture: Image.Image, seed: int) -> Image.Image:
    grain = np.random.default_rng(seed).normal(0, 40, (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def draw(folder: Path, made: Callable[[Image.Image, int], Image.Image]) -> Path:
    """Draw the same scenes of boxes every time, as a step with a fault of its own would; return the folder."""
    folder.mkdir(parents=True)
    rows = []
    for prompt, image in np.ndindex(PROMPTS, IMAGES):
        seed = prompt * IMAGES + image
        random, scene = np.random.default_rng(seed), Image.new("RGB", (SIDE, SIDE), (40 * (prompt % 6), 90, 200))
        for _ in range(4):
            left, top = random.integers(0, SIDE - 8, 2)
            scene.paste(tuple(random.integers(0, 256, 3).tolist()), (left, top, left + 8, top + 8))
        row = {"set": "subject", "prompt": f"scene {prompt}", "prompt_index": prompt, "image_index": image,
               "seed": seed, "file": f"{seed}.png"}  # fmt: skip
        made(scene, seed).save(folder / row["file"])
        rows.append(row)
    write_json(folder / "manifest.json", {"images": rows})
    return folder


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """Judge a run that gets sharper until step 30, and grainy after it."""
    base = draw(tmp_path / "base", blurred(0))
    few = {title: draw(tmp_path / name, blurred(3 - i)) for i, (title, name) in enumerate(UNTAUGHT.items())}
    judges = Judges([ColourHistogram()], RunDir(tmp_path), base, untaught=few)
    found = judges.judge(base, 0, None, key="a")
    for step, made in {10: blurred(2), 20: blurred(1), 30: blurred(0.3), 40: grainy, 50: grainy}.items():
        found = judges.judge(draw(tmp_path / str(step), made), step, found, key="a")
    return found


def test_the_step_before_it_gets_worse_is_taken(course: Course) -> None:
    knee = course.knee
    assert knee
    assert (knee.step, knee.is_conclusive, knee.is_growing, knee.waited) == (30, True, False, 2), knee.words
    assert knee.is_forgetting
    assert "From step 30 on the pictures come no nearer to the base's many-step ones: step 40, the near" in knee.words
    assert "They go away from them again: by step 50 the distance has grown by +" in knee.words


def test_many_steps_are_what_the_few_are_measured_against(course: Course) -> None:
    distance, sharpness = course.curves
    assert (distance.kind, sharpness.kind) == ("teacher_distance", "sharpness")
    assert course.of_few_steps
    assert not any(distance.values[0])
    assert set(sharpness.values[0]) == {1.0}
    means = [sharpness.scores[step].mean for step in (10, 20, 30, 40)]
    assert means == sorted(means)
    assert means[2] < 1 < means[3]
    level, *_, blurriest = (level for level in sharpness.levels if level.name.startswith("untaught"))
    assert (level.title, level.pairs) == ("in 4 steps, drawn as the adapter is", PROMPTS * IMAGES)
    assert level.value < blurriest.value == pytest.approx(means[0])
    assert len(distance.start) == PROMPTS * IMAGES
    assert np.mean(distance.start) == pytest.approx(
        next(one.value for one in distance.levels if one.title == level.title)
    )


def test_a_resumed_run_decides_as_it_had(course: Course) -> None:
    before = until(course, 20)
    assert before
    assert before.knee
    assert (before.knee.step, before.knee.is_growing) == (20, True)
    assert "still coming nearer to the base's many-step ones at step 20" in before.knee.words
    base = until(course, 0)
    assert base
    assert base.knee is None


@pytest.mark.parametrize(
    ("made", "taken", "says"),
    [
        ((3, {10: 0.3, 20: 1, 30: 2}), (10, True), "Step 10 is nearer than the base in as few steps before"),
        ((0, {10: 1, 20: 2, 30: 3}), (10, True), "Step 10 is farther away than the base in as few steps before"),
        ((1, {10: 1, 20: 1, 30: 1}), (30, False), "Step 30 cannot be told from the base in as few steps before"),
    ],
)
def test_where_it_only_gets_worse_the_least_learned_is_taken_and_set_beside_the_start(
    made: tuple[float, dict[int, float]], taken: tuple[int, bool], says: str, tmp_path: Path
) -> None:
    """Its checkpoint has to stay from the first look on, when nothing can be told yet."""
    base, few = draw(tmp_path / "base", blurred(0)), draw(tmp_path / "few", blurred(made[0]))
    judges = Judges([ColourHistogram()], RunDir(tmp_path), base, untaught={"untaught": few})
    found = judges.judge(base, 0, None, key="a")
    for step, radius in made[1].items():
        found = judges.judge(draw(tmp_path / str(step), blurred(radius)), step, found, key="a")
        assert found.knee
        assert found.knee.held == 10
        assert found.knee.is_conclusive == (step > 10 and taken[1])
    assert found.knee
    assert (found.knee.step, found.knee.is_conclusive) == taken, found.knee.words
    assert says in found.knee.words
    assert ("Not conclusive; the last step, 30, is taken" in found.knee.words) == (not taken[1])
