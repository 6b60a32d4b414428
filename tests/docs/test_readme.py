"""The README's commands and its library example run as they stand, on a small base and the demo's pictures."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from limner.cli import main
from limner.families.source import ASSETS
from limner.recipe import shipped_recipes

PICTURES = ASSETS / "demo" / "critter"
SMALL = {
    "steps": 2, "prior.count": 2, "generation.num_inference_steps": 2, "evaluation.images_per_prompt": 1,
    "evaluation.images_per_class_prompt": 1,
}  # fmt: skip


def blocks(root: Path, language: str) -> list[str]:
    text = (root / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def small(base: Path) -> dict[str, object]:
    return {"base": str(base), **SMALL}


def test_every_command_runs(
    root: Path, random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [line for block in blocks(root, "sh") for line in block.splitlines() if line.startswith("limner ")]
    assert [c.split()[1] for c in commands] == ["check", "plan", "train", "generate", "evaluate", "report"]
    for command in commands:
        line = command.replace("photos/", str(PICTURES)).replace("runs/dog", str(tmp_path / "dog"))
        settings = [f"{k}={v}" for k, v in small(random_base).items()]
        words = [*shlex.split(line), *(settings if command.split()[1] in ("check", "plan", "train") else [])]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 0, command
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "dog" / "report.html")
    table = (root / "README.md").read_text(encoding="utf-8").partition("What is in `runs/dog` afterwards:")[2]
    named = re.findall(r"^\| (.*?) \|", table, flags=re.MULTILINE)
    files = [f for row in named for f in re.findall(r"`([\w./]+)`", row)]
    assert "adapter.safetensors" in files
    assert not [f for f in files if not (tmp_path / "dog" / f).exists()]


def test_the_recipes_that_are_named_are_the_shipped_ones(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8").partition("| `--recipe` |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `([\w-]+)` \|", text, flags=re.MULTILINE)
    assert sorted(named) == [name for name in shipped_recipes() if name != "demo"]


def test_the_library_example_runs(
    root: Path, random_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = blocks(root, "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 6
    text = example.replace('"photos/"', repr(str(PICTURES)))
    text = text.replace('{"pictures.class_noun": "dog"}', repr({"pictures.class_noun": "dog", **small(random_base)}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(text)
    runpy.run_path(str(tmp_path / "example.py"))
    assert (tmp_path / "runs" / "dreambooth-lora-critter-1" / "report.html").is_file()


def test_the_make_targets_exist(root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "\n".join(blocks(root, "sh")), flags=re.MULTILINE)
    assert targets == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
