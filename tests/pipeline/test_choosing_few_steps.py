"""Validations of few-step runs: drawn as the adapter is, judged against many steps, and the nearest step is taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import limner
from limner.distilling import distill
from limner.errors import Interrupted, UserError
from limner.families.source import ASSETS
from limner.rundir import RunDir, read_json
from limner.taught import TEMPLATES
from tests.pipeline.test_choosing import Told, course_of, losses, tensors

PICTURES = ASSETS / "demo" / "critter"
STEPS = (0, 2, 4, 6)
FEW: dict[str, Any] = {
    "steps": 6, "batch": 2, "learning_rate": 0.1, "optimizer.schedule": "constant", "adapter.rank": 4,
    "adapter.save_precision": "float32", "checkpoint.every_steps": 0, "objective.phases": 1,
    "distill.words": ["critter", "robot"],
    "distill.images": 4, "generation.num_inference_steps": 3, "evaluation.encoders": ["colour_histogram"],
    "evaluation.images_per_prompt": 1, "evaluation.prompts": ["a {subject}"], "evaluation.class_prompts": [],
    "evaluation.other_prompts": [],
}  # fmt: skip
VALIDATING: dict[str, Any] = {"validation.every_steps": 2, "validation.images_per_prompt": 1}
CHOOSING = {**VALIDATING, "checkpoint.choose": "evidence", "checkpoint.keep": 1}


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point LIMNER_CACHE to a folder whose pictures of the base may be changed."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMNER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def plain(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Distil two steps without any validation."""
    return distill(str(random_base), settings={**FEW, "steps": 2}, run=tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def judged(random_base: Path, cache_of_its_own: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Choose in a run whose best step is known: what it draws at step 2 takes the place of the many-step pictures."""
    place = tmp_path_factory.mktemp("judged")
    first = distill(str(random_base), settings={**FEW, **VALIDATING}, run=place / "first")
    (many,) = cache_of_its_own.glob("base-pictures/*/step-000000")
    for picture in (first.validation / "step-000002").glob("*.png"):
        shutil.copy(picture, many)
    return distill(str(random_base), settings={**FEW, **CHOOSING}, run=place / "run")


def test_the_step_nearest_to_many_steps_becomes_the_result(judged: RunDir, plain: RunDir) -> None:
    course = course_of(judged)
    assert course.steps == STEPS
    assert [curve.kind for curve in course.curves] == ["teacher_distance", "sharpness"], "no subject, no likeness"
    distance, sharpness = course.curves
    assert not any(distance.values[2])
    assert set(sharpness.values[2]) == {1.0}
    assert course.knee
    assert (course.knee.step, course.knee.is_conclusive, course.knee.waited) == (2, True, 2), course.knee.words
    chosen = read_json(judged.provenance)["chosen"]
    assert (chosen["choose"], chosen["step"], chosen["why"]) == ("evidence", 2, course.knee.words)
    assert tensors(judged) == tensors(plain), "the weights of step 2, and validations changed nothing in them"
    assert losses(judged)[:2] == losses(plain)


def test_it_is_drawn_as_the_adapter_is_and_the_base_as_it_is(judged: RunDir) -> None:
    ways = {
        name: tuple(read_json(judged.validation / name / "manifest.json")[key] for key in
                    ("scheduler", "num_inference_steps", "guidance_scale"))
        for name in ("step-000000", "untaught", "untaught-own-sampler", "step-000002", "step-000006")
    }  # fmt: skip
    few = ("lcm", 4, 1.0)
    assert ways == {"step-000000": ("ddim", 3, 5.0), "untaught": few, "untaught-own-sampler": ("ddim", 4, 5.0),
                    "step-000002": few, "step-000006": few}  # fmt: skip
    own, *_ = (level for level in course_of(judged).curves[0].levels if level.name == "untaught_0")
    assert own.title == "the base in 4 steps, drawn as the adapter is"
    drawn = {row["prompt"] for row in read_json(judged.untaught / "manifest.json")["images"]}
    assert len(drawn) == 16
    assert not drawn & {template.replace("{word}", word) for template in TEMPLATES for word in ("critter", "robot")}
    assert {word in prompt for prompt in drawn for word in ("critter", "robot")} == {True, False}


def test_stopped_at_a_validation_it_chooses_alike(judged: RunDir, random_base: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(Interrupted, match="Stopped at step 4 of 6"):
        distill(str(random_base), settings={**FEW, **CHOOSING}, run=run.path, watch=Told(stop_at=4))
    limner.resume(run.path)
    assert course_of(run) == course_of(judged)
    assert run.adapter.read_bytes() == judged.adapter.read_bytes()


def test_the_page_shows_the_course(judged: RunDir) -> None:
    limner.evaluate(judged.path)
    page = limner.report(judged.path).read_text(encoding="utf-8")
    for said in ("Distance to the many-step pictures, as a set", "Sharpness against the many-step pictures",
                 "From step 2 on the pictures come no nearer", "base, 3 steps", "base, 4 steps", "step 2, the nearest",
                 "the base in 4 steps, drawn as the adapter is:", "Step 0 is the base in many steps"):  # fmt: skip
        assert said in page


def test_over_phases_previews_and_validations_are_drawn_with_tcd(random_base: Path, tmp_path: Path) -> None:
    settings = {**FEW, **VALIDATING, "steps": 1, "validation.every_steps": 1, "objective.phases": 2,
                "preview.every_steps": 1, "preview.images": 1}  # fmt: skip
    run = distill(str(random_base), settings=settings, run=tmp_path / "run")
    for folder in (run.previews / "step-000001", run.validation / "step-000001", run.untaught):
        made = read_json(folder / "manifest.json")
        assert (made["scheduler"], made["num_inference_steps"], made["guidance_scale"]) == ("tcd", 2, 1.0)
    preview = read_json(run.previews / "step-000001" / "manifest.json")["images"][0]
    assert preview["prompt"] == "a photo of a critter", "there is no subject to show"


def test_with_a_subject_beneath_likeness_is_judged_too(random_base: Path, tmp_path: Path) -> None:
    """The many-step pictures are the subject's own: what its run drew at its last validation."""
    own = {"base": str(random_base), "steps": 1, "batch": 2, "learning_rate": 0.1, "pictures.class_noun": "critter",
           "prior.enabled": False, "generation.num_inference_steps": 2, "evaluation.encoders": ["colour_histogram"],
           "adapter.save_precision": "float32", **VALIDATING, "validation.every_steps": 1}  # fmt: skip
    dog = limner.train(PICTURES, run=tmp_path / "dog", settings=own)
    settings = {"steps": 1, "batch": 2, "adapter.rank": 4, "distill.images": 4, **VALIDATING}
    few = distill(dog.path, settings={**settings, "validation.every_steps": 1}, run=tmp_path / "few")
    course = course_of(few)
    assert [curve.kind for curve in course.curves] == ["teacher_distance", "subject_fidelity", "sharpness"]
    drawn = read_json(few.validation / "step-000000" / "manifest.json")["images"]
    prompts = {(row["set"], row["prompt"]) for row in drawn}
    assert prompts >= {("subject", "a sks critter on a sofa"), ("class", "a critter")}
    assert len(course.curves[0].values[0]) == len(drawn), "the subject and others of its class"
    for row in drawn:
        many, alone = (
            np.asarray(Image.open(place / row["file"]), int)
            for place in (few.validation / "step-000000", dog.validation / "step-000001")
        )
        assert np.abs(many - alone).max() <= 2


BAD: dict[str, tuple[str, str]] = {
    "all lines learned": ("distill {base} distill.prompts={lines} validation.every_steps=2",
                          r"lines.txt: has 9 prompts, and 9 are learned from \(distill.images=200\), which leaves 0 to "
                          r"validate on. Add lines until 6 or more are left, set distill.images=3 or fewer, or give "),
    "too few left": ("distill {base} distill.prompts={lines} distill.images=5 validation.every_steps=2",
                     "and 5 are learned from .* which leaves 4"),
    "given pictures without a word": (
        "distill {base} {pictures} pictures.caption=critter validation.every_steps=2",
        r"validation.prompts: 'a picture of a \{{subject\}}' asks for a subject, and this few-step run has no word"),
    "choosing by nothing": ("distill {base} distill.words=['dog'] checkpoint.choose=evidence",
                            "validation.every_steps is 0. Set it as well, such as validation.every_steps=100"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD))
def test_bad_input_is_one_line(
    name: str, random_base: Path, run_limner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(f"a critter number {i}" for i in range(9)), encoding="utf-8")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    words, says = (text.format(base=random_base, lines=lines, pictures=PICTURES) for text in BAD[name])
    code, out, err = run_limner(*words.split(" "), "--json")
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1), err
    with pytest.raises(UserError, match=says):
        raise UserError(err, "")
    assert not list(Path.cwd().iterdir())
