"""A run folder with drawn pictures: the subject is a star; the base draws other shapes, the tuned arm draws it."""

from __future__ import annotations

import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

from limner.rundir import RunDir, write_json

SIDE = 64
BACKGROUNDS = {
    "red": (200, 60, 60),
    "green": (70, 160, 90),
    "blue": (70, 100, 190),
    "yellow": (225, 200, 90),
    "purple": (140, 90, 170),
    "grey": (150, 150, 150),
    "pink": (235, 160, 190),
    "brown": (130, 95, 70),
}
BODIES = [(90, 200, 200), (180, 120, 60), (60, 60, 120), (220, 220, 220), (120, 180, 60), (200, 90, 150)]
STAR_BODY = (245, 150, 40)


def draw(corners: int, body: tuple[int, int, int], background: tuple[int, int, int], seed: int) -> Image.Image:
    """Draw one character: a body with corners (a star where negative), two eyes, some change of place and size."""
    rng = random.Random(seed)
    picture = Image.new("RGB", (SIDE * 4, SIDE * 4), background)
    pen = ImageDraw.Draw(picture)
    middle = (SIDE * 2 + rng.uniform(-16, 16), SIDE * 2 + rng.uniform(-16, 16))
    radius, turn = rng.uniform(80, 100), rng.uniform(-0.3, 0.3)
    points = abs(corners) * (2 if corners < 0 else 1)
    outline = []
    for i in range(points):
        r = radius * (0.5 if corners < 0 and i % 2 else 1)
        angle = turn - math.pi / 2 + 2 * math.pi * i / points
        outline.append((middle[0] + r * math.cos(angle), middle[1] + r * math.sin(angle)))
    pen.polygon(outline, fill=body, outline=(30, 30, 30), width=5)
    for side in (-1, 1):
        x, y = middle[0] + side * 20, middle[1] - 4
        pen.ellipse((x - 11, y - 11, x + 11, y + 11), fill="white")
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill="black")
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def scenery(hue: tuple[int, int, int], seed: int) -> Image.Image:
    """Draw something that is no character: hills under a sky."""
    rng = random.Random(seed)
    picture = Image.new("RGB", (SIDE * 4, SIDE * 4), (170, 210, 240))
    pen = ImageDraw.Draw(picture)
    for depth in range(3):
        heights = [(x, SIDE * (1.6 + 0.7 * depth) + rng.uniform(-20, 20)) for x in range(0, SIDE * 4 + 1, 32)]
        shade = tuple(int(c * (0.9 - 0.2 * depth)) for c in hue)
        pen.polygon([(0, SIDE * 4), *heights, (SIDE * 4, SIDE * 4)], fill=shade)
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def member(seed: int, background: tuple[int, int, int]) -> Image.Image:
    """Draw some character of the class that is not the subject."""
    rng = random.Random(seed)
    return draw(rng.choice([3, 4, 5, 6, 24]), rng.choice(BODIES), background, seed)


def star(seed: int, background: tuple[int, int, int]) -> Image.Image:
    """Draw the subject."""
    return draw(-5, STAR_BODY, background, seed)


def make_arm(run: RunDir, arm: str, *, tuned: bool, prompts: int = 8, images: int = 3, **settings: object) -> Path:
    """Draw one arm's images with their manifest; a tuned arm draws the star where the prompt holds the token."""
    folder = run.images / arm
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in ("subject", "class", "other"):
        for p, (colour, rgb) in enumerate(list(BACKGROUNDS.items())[:prompts]):
            for i in range(images):
                seed = hash((p, i)) % 100_000
                where = f"on a {colour} background"
                thing = {"subject": "sks critter", "class": "critter", "other": "hill"}[name]
                prompt = f"a photo of a {thing} {where}"
                if name == "other":
                    picture = scenery(rgb, seed + (1 if tuned and i == 0 else 0))
                elif name == "subject" and tuned:
                    picture = star(seed, rgb)
                else:
                    picture = member(seed + (10 if name == "class" else 0) + (1 if tuned and p == 0 else 0), rgb)
                file = f"{name}-{p:02d}-{i:02d}.png"
                picture.save(folder / file)
                rows.append(
                    {
                        "file": file,
                        "set": name,
                        "prompt": prompt,
                        "plain_prompt": prompt.replace("sks ", ""),
                        "prompt_index": p,
                        "seed": seed,
                        "image_index": i,
                    }
                )
    manifest = {
        "arm": arm,
        "base": "tiny",
        "identity": {"unet": "0123456789abcdef", "vae": "1123456789abcdef"},
        "adapter": "adapter.safetensors" if tuned else None,
        "strength": 1.0,
        "num_inference_steps": 25,
        "guidance_scale": 4.0,
        "scheduler": "ddim",
        "negative_prompt": "",
        "resolution_px": SIDE,
        "seconds": 12.3,
        "images": rows,
        **settings,
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def make_run(
    path: Path,
    *,
    tuned_like_base: bool = False,
    prompts: int = 8,
    images: int = 3,
    subject: str = "star",
    kind: str = "lora",
    prior: bool = True,
    rank: int = 8,
) -> RunDir:
    """Make a whole run folder as the earlier stages leave it."""
    run = RunDir.create(path, name="lora-star")
    make_arm(run, "base", tuned=False, prompts=prompts, images=images)
    make_arm(run, "tuned", tuned=not tuned_like_base, prompts=prompts, images=images)
    for folder, key, draws in ((run.pictures, "pictures", star), (run.class_pictures, "images", member)):
        folder.mkdir()
        rows = []
        for i, rgb in enumerate(list(BACKGROUNDS.values())[: 5 if key == "pictures" else 8]):
            draws(500 + i, rgb).save(folder / f"{i:02d}.png")
            rows.append({"file": f"{i:02d}.png", "caption": "a photo of sks critter", "sha256": f"{subject}-{key}-{i}"})
        write_json(folder / "manifest.json", {key: rows})
    for step in (50, 100):
        folder = run.previews / f"step-{step:06d}"
        folder.mkdir(parents=True)
        star(step, BACKGROUNDS["red"]).save(folder / "free-00-00.png")
        write_json(folder / "manifest.json", {"images": [{"file": "free-00-00.png"}]})
    _write_history(run, kind, prior, rank)
    return run


def _write_history(run: RunDir, kind: str, has_prior: bool, rank: int) -> None:
    rng = random.Random(0)
    run.append_log("phase", name="prepare", seconds=2.1, peak_memory_gib=0.6)
    run.append_log("phase", name="class pictures", seconds=31.0, peak_memory_gib=0.9)
    for step in range(1, 201):
        instance, prior = 0.12 * math.exp(-step / 90) + 0.05, 0.08 + 0.01 * math.exp(-step / 50)
        instance, prior = instance * rng.uniform(0.6, 1.5), prior * rng.uniform(0.6, 1.5)
        run.append_log(
            "step",
            step=step,
            loss=instance + prior,
            instance_loss=instance,
            prior_loss=prior,
            lr=1e-3,
            grad_norm=0.3,
            seconds=0.31,
        )
    run.append_log("phase", name="train", seconds=64.0, peak_memory_gib=1.4)
    run.append_log("phase", name="generate", seconds=41.0, peak_memory_gib=1.0)
    run.recipe.write_text(
        f'base = "tiny"\nsteps = 200\nlearning_rate = 0.001\n\n[adapter]\nkind = "{kind}"\nrank = {rank}\n\n'
        f"[prior]\nenabled = {str(has_prior).lower()}\n"
    )
    run.update_provenance(
        command=["/usr/bin/limner", "demo", "--run", "runs/demo"],
        date="2026-11-22T09:00:00+00:00",
        recipe="dreambooth-lora",
        versions={"limner": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        hardware={"cpu": "a processor", "cores": 2, "gpu": None},
        base={"name": "tiny", "identity": {"unet": "0123456789abcdef", "vae": "1123456789abcdef"}},
        adapter={"kind": "lora", "trainable_parameters": 120_000, "base_parameters": 14_200_000, "file_bytes": 485_112},
    )
