"""Who judges is found before anything is trained; other subjects' pictures are made as the subject's are."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
from PIL import Image

import limner
from limner.errors import UserError
from limner.evaluate.encoders import panel_of
from limner.evaluate.images import load_mask, load_pixels, read_masks, read_pictures
from limner.files import sha256_of
from limner.pictures.spec import Pictures
from limner.prepare.check import check_pictures
from limner.prepare.distractors import save_distractors
from limner.prepare.save import save_pictures
from limner.recipe import load_recipe
from limner.rundir import read_json
from limner.scoring import require_judges, score
from limner.watch import Watch
from tests.encoders import make_clip, make_dino
from tests.unit.evaluate.synthetic import make_run


def recipe_with(**settings: object) -> limner.Recipe:
    named = {f"evaluation.{name}": value for name, value in settings.items()}
    return load_recipe("lora", {"base": "tiny", "pictures.class_noun": "critter", **named})


def test_an_encoder_that_cannot_be_found_stops_a_check(root: Path) -> None:
    pictures = root / "src/limner/assets/demo/critter"
    settings = {"base": "tiny", "pictures.class_noun": "critter", "evaluation.encoders": ["facebook/dinov2-small"]}
    with pytest.raises(UserError, match="evaluation.encoders: 'facebook/dinov2-small' is not on this machine"):
        limner.check(pictures, settings=settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": "nowhere/PickScore_v1"}, "evaluation.quality: 'nowhere/PickScore_v1' is not on this machine"),
        ({"distractors": "no/such/folder"}, "evaluation.distractors=.*no/such/folder: there is no such folder"),
        ({"encoders": ["lite0", "lite0"]}, "two would be called lite0"),
    ],
)
def test_judges_that_cannot_be_found_are_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_judges(recipe_with(**settings))


def test_distractors_are_folders_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no folders"):
        require_judges(recipe_with(distractors=str(tmp_path)))
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="No pictures in .*dog"):
        require_judges(recipe_with(distractors=str(tmp_path)))


def test_the_embedded_base_is_judged_by_what_comes_with_it() -> None:
    panel = panel_of("tiny")
    assert [e.name for e in panel.encoders] == ["lite0", "colour_histogram", "tiny_image_text"]
    assert panel.distances == ()
    assert list(panel.absent) == ["preference"]


def test_a_real_base_without_published_encoders_says_how_to_get_them(random_base: Path) -> None:
    panel = panel_of(str(random_base))
    assert [e.name for e in panel.encoders] == ["lite0", "colour_histogram"]
    assert panel.absent["subject_fidelity.dinov2-small"].endswith("hf download facebook/dinov2-small")
    assert "hf download openai/clip-vit-base-patch32" in panel.absent["prompt_following"]
    assert "limner[metrics]" in panel.absent["diversity.lpips-alex"]


def test_published_encoders_judge_real_bases_as_far_as_they_are_here(
    tmp_path: Path, random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    kept = {"openai/clip-vit-base-patch32": make_clip, "facebook/dino-vits16": make_dino}
    found = []
    for name, make in kept.items():
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        make(folder / "snapshots" / ("0" * 40))
        found.append([e.name for e in panel_of(str(random_base)).encoders])
    assert found == [
        ["lite0", "clip-vit-base-patch32", "colour_histogram"],
        ["dino-vits16", "clip-vit-base-patch32", "colour_histogram"],
    ]


def test_named_judges_are_taken_and_no_others(tmp_path: Path) -> None:
    names = [str(make_dino(tmp_path / "dino-vits16")), "colour_histogram", "image_text"]
    panel = panel_of("tiny", names, str(make_clip(tmp_path / "judge")))
    assert [e.name for e in panel.encoders] == ["dino-vits16", "colour_histogram", "tiny_image_text", "judge"]
    assert [m.key for m in panel.metrics if m.encoder == "judge"] == ["preference.judge"]


def test_other_subjects_pictures_are_made_as_the_subjects_are(tmp_path: Path) -> None:
    for name, size in {"cat": (90, 64), "dog": (64, 64)}.items():
        (tmp_path / "others" / name).mkdir(parents=True)
        Image.effect_noise(size, 60).convert("RGB").save(tmp_path / "others" / name / "a.png")
    named = {"spec": Pictures(), "resolution_px": 64, "out": tmp_path / "out"}
    dog = sha256_of(tmp_path / "others" / "dog" / "a.png")
    assert save_distractors(tmp_path / "others", learned=(), **named) == []
    for name, shape in {"cat": (3, 48, 64), "dog": (3, 64, 64)}.items():  # in the shapes that training pictures get
        (path,) = read_pictures(tmp_path / "out" / name)
        assert load_pixels(path).shape == shape
    assert save_distractors(tmp_path / "others", learned={dog}, **named) == ["dog"]
    shutil.rmtree(tmp_path / "others" / "cat")
    with pytest.raises(UserError, match=r"holds only the subject \(dog\)"):
        save_distractors(tmp_path / "others", learned={dog}, **named)


def test_masks_are_kept_as_the_pictures_are(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        Image.effect_noise((96, 64), 60).convert("RGB").save(folder / f"{name}.png")
    mask = Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))
    mask.save(folder / "a-mask.png")
    spec = Pictures(class_noun="cat")
    save_pictures(check_pictures(folder, spec, resolution_px=64), spec, tmp_path / "kept")
    kept = read_masks(tmp_path / "kept")
    ((picture, own),) = kept.items()
    assert picture == read_pictures(tmp_path / "kept")[0]
    seen = load_mask(own)
    assert seen.shape == load_pixels(picture).shape[1:]
    assert seen[:, :20].min() > 0.9
    assert seen[:, -20:].max() < 0.1


def test_runs_that_ask_for_different_judges_are_not_compared(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, prompts=1, images=1) for name in "ab"]
    recipes = [recipe_with(), recipe_with(encoders=["lite0"])]
    with pytest.raises(UserError, match=r"Comparison refused: .*a has evaluation.encoders=\(\), .*b \('lite0',\)"):
        score(runs, recipes, tmp_path / "scores.json", Watch())


def test_a_run_is_scored_among_the_shipped_subjects(tmp_path: Path, root: Path) -> None:
    run = make_run(tmp_path / "run", prompts=6, images=1)
    recipe = recipe_with(encoders=["colour_histogram"], distractors=str(root / "src/limner/assets/demo"))
    score([run], [recipe], run.scores, Watch())
    scores = read_json(run.scores)
    shipped = ("clay_figure", "critter", "critter_cyan", "plant", "robot", "robot_gray")
    assert scores["design"]["distractors"] == dict.fromkeys(shipped, 5)
    (metric,) = (m for m in scores["metrics"] if m["kind"] == "identification")
    assert {level["name"]: level["value"] for level in metric["levels"]}["chance"] == pytest.approx(1 / 7)
