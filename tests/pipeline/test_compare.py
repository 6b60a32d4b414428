"""Two subjects, two seeds, two arms: killed, stopped and continued, the study is that of an unbroken comparison."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import limner
from limner.errors import Interrupted, UserError
from limner.families.source import ASSETS
from limner.metrics.study import Study
from limner.rundir import RunDir, read_json
from limner.watch import Watch
from tests.pipeline.conftest import Result
from tests.pipeline.lines import Lines
from tests.unit.report.test_report import Page

ARMS = "base,lora,dreambooth[prior.enabled=false]"
FAST: dict[str, Any] = {
    "steps": 2, "checkpoint.every_steps": 1, "generation.num_inference_steps": 1, "evaluation.images_per_prompt": 1,
    "evaluation.images_per_class_prompt": 1, "evaluation.prompts": ["a photo of a {subject}", "a {subject} in snow"],
    "evaluation.class_prompts": ["a photo of a {class_noun}"], "evaluation.other_prompts": [],
}  # fmt: skip
KILLED = """
import json, os, signal, sys
import limner
from limner.watch import Watch

class Killed(Watch):
    phase_now = ""
    def begin(self, phase): self.phase_now = phase
    def progress(self, done, total, note=""):
        if (self.phase_now, done) == ("3 of 8 train", 1):
            os.kill(os.getpid(), signal.SIGKILL)

limner.compare(**json.loads(sys.argv[1]), watch=Killed())
"""


class Stopped(Watch):
    """Stops the comparison, as Ctrl-C does, when a phase begins."""

    def __init__(self, phase: str) -> None:
        self.phase_to_stop = phase

    def begin(self, phase: str) -> None:
        if phase == self.phase_to_stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of two subjects."""
    folder = tmp_path_factory.mktemp("subjects")
    for name in ("critter", "robot"):
        (folder / f"sks {name}").mkdir()
        for number in "12":
            shutil.copy(ASSETS / "demo" / name / f"{number}.png", folder / f"sks {name}")
    return folder


@pytest.fixture(scope="module")
def asked(subjects: Path, random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what is asked for, again and again."""
    return {"arms": ARMS, "subjects": str(subjects), "seeds": [0, 1], "run": str(tmp_path_factory.mktemp("out")),
            "settings": {"base": str(random_base), **FAST}}  # fmt: skip


@pytest.fixture(scope="module")
def made(asked: dict[str, Any], root: Path) -> tuple[Path, list[str]]:
    """Compare: killed within the third training, stopped before the fifth, then to the end; return page and lines."""
    command = [sys.executable, "-c", KILLED, json.dumps(asked)]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    killed = subprocess.run(command, cwd=root, check=False, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    third = RunDir(Path(asked["run"], "sks critter", "seed-1", "lora"))
    assert third.recipe.is_file()
    assert not third.adapter.exists()
    with pytest.raises(Interrupted, match="Stopped. What is finished stays; the same command goes on."):
        limner.compare(**asked, watch=Stopped("5 of 8 train"))
    before = third.adapter.stat().st_mtime_ns
    lines = Lines()
    page = limner.compare(**asked, watch=lines)
    assert third.adapter.stat().st_mtime_ns == before, "what is there is not done again"
    return page, lines.said


def test_every_arm_of_every_subject_and_seed_is_in_the_study(made: tuple[Path, list[str]]) -> None:
    page, said = made
    study = Study.model_validate(read_json(page.with_suffix(".json")))
    assert study.design.arms == ("base", "lora", "dreambooth[prior.enabled=false]")
    assert [subject.name for subject in study.design.subjects] == ["sks critter", "sks robot"]
    assert (study.design.seeds, study.design.unit, study.design.budget.kind) == ((0, 1), "subject", "own")
    assert {arm.steps for arm in study.design.budget.arms.values()} == {2}
    assert {d.finding for m in study.metrics for d in m.differences} <= {
        "not conclusive",
        "not tested",
        "no difference",
    }
    there = "2 arms × 2 subjects × 2 seeds = 8 trainings, 4 there already; about "
    assert any(line.startswith(there) for line in said)
    assert "5 of 8: lora on sks robot, seed 0, 2 steps" in said
    kept = (page.parent / "sks robot" / "seed-1" / "lora" / "recipe.toml").read_text(encoding="utf-8")
    assert 'token = "sks"' in kept
    assert 'class_noun = "robot"' in kept
    assert "seed = 1" in kept


def test_the_page_leads_to_every_subjects_own(made: tuple[Path, list[str]]) -> None:
    page = made[0]
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.open == []
    inside = {address[1:] for address in parsed.addresses if address.startswith("#")}
    assert inside <= parsed.ids
    beside = [unquote(a) for a in parsed.addresses if not a.startswith(("data:", "#"))]
    assert [name for name in beside if not (page.parent / name).is_file()] == []
    for name in ("sks%20critter", "sks%20robot"):
        assert f'href="{name}/seed-0/comparison.html"' in text
    assert (page.parent / "sks robot" / "seed-1" / "comparison.html").is_file()
    assert text.count("<img") == 2 * 2 * 4, "two subjects, two prompts, reference, base and two arms"
    table = page.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
    for line in table[1:]:
        assert (page.parent / line.rsplit(",", 1)[1]).is_file()


def test_killed_and_continued_it_ends_as_one_left_alone(
    made: tuple[Path, list[str]], asked: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copytree(Path(asked["subjects"], "sks critter"), tmp_path / "one" / "sks critter")
    limner.compare(**{**asked, "subjects": tmp_path / "one", "seeds": [1], "run": tmp_path / "out"})
    alone, broken = (folder / "sks critter" / "seed-1" for folder in (tmp_path / "out", made[0].parent))
    files = [
        *alone.rglob("adapter.safetensors"),
        *alone.rglob("model/unet/*.safetensors"),
        *alone.rglob("images/*/*.png"),
    ]
    assert len(files) == 1 + 1 + 2 * 2 * 3
    assert [f.name for f in files if f.read_bytes() != (broken / f.relative_to(alone)).read_bytes()] == []
    assert read_json(alone / "comparison.json") == read_json(broken / "comparison.json")


def test_what_was_made_otherwise_is_refused(made: tuple[Path, list[str]], asked: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"seed-0/lora: was made with learning_rate=0.0001, and now learning_rate=0.5 is"
    ):
        limner.compare(**{**asked, "settings": {**asked["settings"], "learning_rate": 0.5}})
    with pytest.raises(UserError, match="was made with no budget, and budget=steps 2 steps is asked for"):
        limner.compare(**{**asked, "settings": {**asked["settings"], "budget": "steps"}})


def test_equal_seconds_become_steps_by_a_measured_pace_and_stay(
    run_limner: Callable[..., Result], subjects: Path, random_base: Path, tmp_path: Path
) -> None:
    settings = [f"{k}={json.dumps(v) if isinstance(v, list) else v}" for k, v in FAST.items() if k != "steps"]
    words = ("compare", subjects / "sks robot", "--arms", "dreambooth-lora[prior.count=2]", "--run", tmp_path / "out",
             f"base={random_base}", "pictures.class_noun=robot", "budget=time", "seconds=1", *settings)  # fmt: skip
    code, out, err = run_limner(*words)
    assert code == 0, err
    assert out.splitlines()[-1] == f"page: {tmp_path / 'out' / 'study.html'}"
    budget = Study.model_validate(read_json(tmp_path / "out" / "study.json")).design.budget
    assert (budget.kind, budget.amount) == ("time", "1 s")
    (one,) = budget.arms.values()
    assert one.step_seconds
    assert one.class_seconds
    assert one.steps == int((1 - one.class_seconds) / one.step_seconds)
    (recipe,) = (tmp_path / "out").glob("sks robot/seed-0/*/recipe.toml")
    assert f"steps = {one.steps}\n" in recipe.read_text(encoding="utf-8")
    assert not (tmp_path / "out" / ".pace").exists()
    before = (tmp_path / "out" / "compare.json").read_bytes()
    code, out, err = run_limner(*words)
    assert code == 0, err
    assert "1 trainings, 1 there already" in err
    assert (tmp_path / "out" / "compare.json").read_bytes() == before, "the pace is not measured again"
