"""Two runs trained, drawn together, merged and measured, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from limner.families.source import ASSETS
from limner.rundir import read_json
from tests.pipeline.conftest import Result

SMALL = ["steps=2", "prior.enabled=false", "generation.num_inference_steps=2", "evaluation.images_per_prompt=1"]


def test_two_subjects_from_the_command_line(
    run_limner: Callable[..., Result], random_base: Path, tmp_path: Path
) -> None:
    tom, bob = tmp_path / "tom", tmp_path / "bob"
    for run, noun, token, kind in ((tom, "critter", "sks", "lora"), (bob, "robot", "<bob>", "pivotal")):
        words = [
            "--recipe",
            "demo",
            "--run",
            run,
            f"base={random_base}",
            f"pictures.token={token}",
            f"adapter.kind={kind}",
        ]
        code, _, err = run_limner(
            "train", ASSETS / "demo" / noun, *words, f"pictures.class_noun={noun}", *SMALL, "--json"
        )
        assert code == 0, err
    out = tmp_path / "bleed"
    code, printed, err = run_limner("bleed", tom, bob, "--out", out, "evaluation.encoders=['colour_histogram']")
    assert code == 0, err
    assert printed.splitlines()[-1] == f"page: {out / 'bleed.html'}"
    assert "max bleed: '" in err
    assert [len(row) for row in (read_json(out / "bleed.json")[key] for key in ("names", "cells"))] == [2, 4]
    drawn = tmp_path / "drawn"
    words = ["--adapter", f"{bob}:0.5,mid=0", "--prompt", "a sks critter and a <bob> robot", "--seeds", "1"]
    code, _, err = run_limner("generate", tom, *words, "--out", drawn)
    assert code == 0, err
    used = read_json(drawn / "manifest.json")["adapters"]
    assert used == [[str(tom / "adapter.safetensors"), 1.0], [str(bob), "0.5,mid=0"]]
    both = tmp_path / "both.safetensors"
    files = [f"{run}/adapter.safetensors:{strength}" for run, strength in ((tom, 0.5), (bob, 1))]
    code, printed, err = run_limner("merge", *files, "--out", both, "how=svd", "energy=0.9", "--json")
    assert code == 0, err
    made = json.loads(printed)
    assert made["adapter"] == str(both)
    assert all(0.9 <= module["kept"] <= 1 for module in made["modules"].values())
    code, _, err = run_limner("merge", random_base, bob, "--out", tmp_path / "model")
    assert code == 2
    assert "<bob> is a learned word, which has its place in no model" in err
    code, _, err = run_limner("bleed", tom, tom)
    assert code == 2
    assert "have the same trigger 'sks'" in err
