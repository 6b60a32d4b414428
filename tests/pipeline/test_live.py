"""Live drawing: the same pictures as ever, one after the other, while a prompt is typed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limner.distilling import distill
from limner.families.load import fingerprints
from limner.generate.draw import Request, Sampling, draw_batch
from limner.generate.faults import to_images
from limner.generate.warm import Warm
from limner.keyboard import edited, typed
from limner.live import follow, live
from limner.rundir import RunDir
from tests.fresh import fresh


@pytest.fixture(scope="module")
def lcm(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Distil the random base for two steps."""
    settings = {"steps": 2, "batch": 2, "learning_rate": 1e-2, "adapter.rank": 4, "distill.words": ["critter"],
                "distill.images": 2, "generation.num_inference_steps": 1}  # fmt: skip
    return distill(str(random_base), settings=settings, run=tmp_path_factory.mktemp("lcm") / "run")


def request_of(prompt: str, seed: int) -> Request:
    return Request("free", prompt, prompt, 0, 0, seed)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(scheduler="lcm", num_inference_steps=3, guidance_scale=1),
        Sampling(scheduler="ddim", num_inference_steps=3, guidance_scale=5, negative_prompt="a house"),
        Sampling(scheduler="tcd", num_inference_steps=2, guidance_scale=1),
    ],
    ids=lambda sampling: sampling.scheduler,
)
@pytest.mark.parametrize("kind", ["sd15", "xl"])
def test_a_warm_model_draws_what_the_pipeline_draws(
    sampling: Sampling, kind: str, request: pytest.FixtureRequest
) -> None:
    family = fresh(request.getfixturevalue(f"random_{kind}"))
    warm = Warm(family, sampling, 64)
    for prompt, seed in (("a critter", 3), ("a red critter", 3), ("a critter", 3), ("a critter", 4)):
        pixels = draw_batch(family, [request_of(prompt, seed)], sampling, 64, lambda step: None)[1]
        assert torch.equal(warm.pixels(prompt, seed), pixels)


def test_adapters_are_folded_in_and_the_base_comes_back(lcm: RunDir, random_base: Path) -> None:
    with live(str(random_base), adapters=[(lcm.adapter, 1.0)]) as drawn:
        family, (name,) = drawn.warm.family, drawn.adapters.names
        before = dict(family.identity)
        assert fingerprints(family)["unet"] != before["unet"]
        with_it = np.asarray(drawn.picture("a critter"), int)
        drawn.set({name: 0.0})
        assert fingerprints(family) == before
        without = np.asarray(drawn.picture("a critter"), int)
        drawn.set({name: 1.0})
        assert np.array_equal(np.asarray(drawn.picture("a critter"), int), with_it)
        beside = drawn.adapters
        beside.set({name: 1.0})  # on the fly
        on_the_fly = draw_batch(family, [request_of("a critter", 0)], drawn.warm.sampling, 64, lambda step: None)[1]
        apart = np.abs(np.asarray(next(iter(to_images(on_the_fly))), int) - with_it)
        assert apart.max() <= 1  # folded in it rounds otherwise
        assert np.abs(without - with_it).max() > 5
    assert fingerprints(family) == before


def test_each_prompt_is_drawn_into_one_file(lcm: RunDir, tmp_path: Path) -> None:
    place, seen = tmp_path / "live.png", list[bytes]()
    told: list[str] = []

    def prompts() -> Iterator[str]:
        for prompt in ("a critter", "  ", "a red critter"):
            yield prompt
            seen.append(place.read_bytes())

    with live(lcm.path) as drawn:
        follow(drawn, prompts(), place, seed=5, tell=lambda prompt, seconds: told.append(prompt))
        assert np.array_equal(np.asarray(Image.open(place)), np.asarray(drawn.picture("a red critter", 5)))
    assert told == ["a critter", "a red critter"]
    assert seen[0] == seen[1] != seen[2]


def test_lines_from_a_pipe_are_drawn(
    lcm: RunDir, tmp_path: Path, run_limner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, lines = tmp_path / "new.png", tmp_path / "prompts.txt"
    lines.write_text("a critter\na red critter\n", encoding="utf-8")
    with lines.open(encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        code, out, _ = run_limner("generate", lcm.path, "--live", "--seeds", 5, "--out", place, "--json")
    assert (code, json.loads(out)) == (0, {"image": str(place), "drawn": 2})
    with live(lcm.path) as drawn:
        assert np.array_equal(np.asarray(Image.open(place)), np.asarray(drawn.picture("a red critter", 5)))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "."], "--live writes one file. Name it"),
        (["--out", "x.jpg"], "--live writes one file. Name it"),
        (["--seeds", "1,2"], "--seeds 1,2: --live draws one picture at a time"),
        (["--seeds", "many"], "'many' is not a number"),
        ([], "--live: nothing was typed, and nothing was drawn"),
        (["adapter.rank=4"], "adapter.rank: has no effect on drawing"),
        (["generation.scheduler=euler"], "scheduler is Euler; LCM-LoRA needs LCM"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], says: str, lcm: RunDir, run_limner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with Path(os.devnull).open(encoding="utf-8") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        code, out, err = run_limner("generate", lcm.path, "--live", "--json", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1


def test_live_drawing_is_by_one_model(random_xl: Path, random_refiner: Path, run_limner: Callable[..., Any]) -> None:
    code, _, err = run_limner("generate", random_xl, "--live", "--json", f"generation.refiner={random_refiner}")
    assert code == 2
    assert "live drawing is by one model. Leave it out" in err


@pytest.mark.parametrize(
    ("keys", "text", "is_over"),
    [
        ("a dog", "a dog", False),
        ("a dgo\x7f\x7fog", "a dog", False),
        ("a dog\x17cat", "a cat", False),
        ("a dog\x15a cat", "a cat", False),
        ("a dog\nx", "x", False),
        ("a \x1b[Adog\x1b[1;5C\x1bOA", "a dog", False),
        ("a dog\x04 and more", "a dog", True),
    ],
)
def test_keys_edit_the_line(keys: str, text: str, is_over: bool) -> None:
    assert edited("", keys) == (text, is_over)


def test_at_a_terminal_the_newest_text_is_yielded() -> None:
    pty = pytest.importorskip("pty")
    hand, screen = pty.openpty()
    shown: list[str] = []
    with os.fdopen(screen, "r", encoding="utf-8") as stream:
        os.write(hand, b"a re\n")
        texts = typed(stream, shown.append)
        os.write(hand, "\x15a red crittér".encode())
        assert "crittér" in next(texts)
        os.write(hand, b" on blue\x04")
        assert next(texts) == "a red crittér on blue"
        assert list(texts) == []
    os.close(hand)
    assert shown[-1] == "a red crittér on blue"
