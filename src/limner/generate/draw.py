"""Draw pictures for prompts with the stock diffusers pipeline, one seed per picture, into a folder with a manifest."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from limner.errors import UserError
from limner.families.decoder import Decoder
from limner.families.family import Family
from limner.files import sweep
from limner.generate.clock import Clock
from limner.generate.faults import constant_colour, is_spoilt, overflow, to_images
from limner.rundir import read_json, write_atomically, write_json
from limner.seeds import seed_of
from limner.spec import Spec
from limner.types import Latents, Pixels

MANIFEST, SETTINGS, CAPTIONS = "manifest.json", "settings.json", "metadata.jsonl"
SCHEDULERS = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "euler": "EulerDiscreteScheduler",
              "lcm": "LCMScheduler", "tcd": "TCDScheduler"}  # fmt: skip


class Sampling(Spec):
    """How pictures are drawn: class pictures, previews and both sides of every comparison."""

    scheduler: Literal["ddim", "dpm++", "euler", "lcm", "tcd"] = "ddim"
    """The sampler: "ddim", "dpm++" (good in fewer steps) or "euler"; "lcm" and "tcd" draw in 4 to 8 steps with what was
    trained for that (objective.kind=consistency), with guidance_scale=1."""
    num_inference_steps: int = Field(default=25, ge=1, le=1000)
    """Denoising steps per picture."""
    guidance_scale: float = Field(default=5.0, ge=1)
    """Classifier-free guidance (arXiv:2207.12598): how strongly the prompt is followed; 1 is off."""
    negative_prompt: str = ""
    """What the pictures should not show."""
    refiner: str = ""
    """A refiner that finishes the pictures that an SDXL base begins: a hub name, a folder or a single file, as `base`.
    It draws for `limner generate` and for both sides of the comparison. Previews and class pictures are the base's own:
    they are drawn often, and class pictures are to be what the base knows."""
    begun_by: str = ""
    """Where the base of a run is a refiner itself: the SDXL base that begins all its pictures, because a refiner cannot
    begin one."""
    handover: float = Field(default=0.8, gt=0, lt=1)
    """Share of the noise that the base takes away before the refiner goes on. SDXL's refiner was made for 0.8."""
    aesthetic_score: float = Field(default=6.0, ge=1, le=10)
    """How good a picture the refiner is told to make, from 1 to 10."""
    negative_aesthetic_score: float = Field(default=2.5, ge=1, le=10)
    """How good a picture the refiner is told to keep away from."""
    batch: int = Field(default=8, ge=1)
    """Pictures drawn at a time; changes memory and speed, not the pictures' seeds."""

    @property
    def partner(self) -> tuple[str, str]:
        """Return the setting that names the model which draws together with the base, and that name; "" for none."""
        return ("begun_by", self.begun_by) if self.begun_by else ("refiner", self.refiner)

    def alone(self) -> Sampling:
        """Return these settings without a refiner, as previews and class pictures are drawn."""
        return self.model_copy(update={"refiner": ""})


@dataclass(frozen=True)
class Request:
    """One picture to draw."""

    set: str
    """Which group of prompts it belongs to: "subject", "class", "other", or "free" for the user's own."""
    prompt: str
    plain_prompt: str
    """The prompt with the token dropped: what prompt following is scored against."""
    prompt_index: int
    image_index: int
    seed: int

    @property
    def file(self) -> str:
        return f"{self.set}-{self.prompt_index:02d}-{self.image_index:02d}.png"


def requests_for(set_name: str, prompts: Sequence[tuple[str, str]], numbers: Iterable[int]) -> list[Request]:
    """Return a request per (prompt, plain prompt) and number.

    A picture's seed follows from its plain prompt and number, so that runs with other tokens are paired too.
    """
    numbered = list(enumerate(numbers))
    return [
        Request(set_name, prompt, plain, p, i, seed_of(plain, number))
        for p, (prompt, plain) in enumerate(prompts)
        for i, number in numbered
    ]


def requests_in_turn(prompts: Sequence[str], count: int, salt: str = "") -> list[Request]:
    """Return so many pictures to learn from, the prompts in turn, each time from other noise."""
    salted = (salt,) if salt else ()
    turns = [(*divmod(i, len(prompts)), prompts[i % len(prompts)]) for i in range(count)]
    return [Request("class", prompt, prompt, p, i, seed_of(*salted, prompt, i)) for i, p, prompt in turns]


def caption_drawn(manifest: Path) -> None:
    """Write the prompt of each picture beside them as its caption, where whoever learns from the folder reads it."""
    rows = [{"file_name": row["file"], "text": row["prompt"]} for row in read_json(manifest)["images"]]
    write_atomically(manifest.parent / CAPTIONS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def draw(  # noqa: PLR0913 - who draws what, how and where, and three things that most leave out
    family: Family,
    requests: Sequence[Request],
    out: Path,
    *,
    sampling: Sampling,
    resolution_px: int,
    about: dict[str, Any],
    progress: Callable[[int, int], None],
    replace: bool = False,
    decoder: Decoder | None = None,
) -> Path:
    """Draw every request into `out` and write its manifest last; return the manifest's path.

    The same requests drawn again are not redone, and a broken-off folder is continued. Pictures of other settings in
    `out` are a UserError, or with `replace` are drawn anew. `about` goes into the manifest (arm, base, adapter,
    strength), and so does what is wrong with a picture (`faults`). `progress` gets (denoising steps done, in all).
    Where the family has a refiner, that takes the latents over at `sampling.handover` and finishes them; where another
    begins its pictures, it is the family that does. A small `decoder` is for pictures that only are looked at.
    """
    settings = {**about, **sampling.model_dump(), **_partner(family), "resolution_px": resolution_px,
                "requests": [asdict(r) for r in requests]}  # fmt: skip
    settings |= {"decoder": decoder.name} if decoder else {}
    sweep(out)
    if (out / SETTINGS).is_file() and read_json(out / SETTINGS) != settings:
        if not replace:
            raise UserError(f"{out}: holds pictures of other prompts or settings.", "Name another folder with --out.")
        _clear(out)
    # whole batches, the same whatever is there: another number of rows at a time rounds a picture otherwise
    batches = [requests[start : start + sampling.batch] for start in range(0, len(requests), sampling.batch)]
    todo = [chunk for chunk in batches if any(not (out / r.file).is_file() for r in chunk)]
    if (out / MANIFEST).is_file() and not todo:
        return out / MANIFEST
    write_json(out / SETTINGS, settings)
    total, done = sum(map(len, todo)) * sampling.num_inference_steps, 0
    faults: dict[str, str] = {}
    for chunk in todo:

        def tick(step: int, *, n: int = len(chunk), base: int = done) -> None:
            progress(base + n * step, total)

        latents, pixels = draw_batch(family, chunk, sampling, resolution_px, tick, decoder=decoder)
        for request, image in zip(chunk, to_images(pixels), strict=True):
            data = io.BytesIO()
            image.save(data, "PNG")
            write_atomically(out / request.file, data.getvalue())
        faults |= {r.file: why for r, one in zip(chunk, latents, strict=True) if (why := overflow(one, family.dtype))}
        done += len(chunk) * sampling.num_inference_steps
    faults = {r.file: f"constant ({colour})" for r in requests if (colour := constant_colour(out / r.file))} | faults
    images = [{"file": r.file, **asdict(r)} for r in requests]
    about = {k: v for k, v in settings.items() if k != "requests"}
    write_json(out / MANIFEST, {**about, "images": images, "faults": faults})
    return out / MANIFEST


@torch.no_grad()
def draw_batch(
    family: Family,
    chunk: Sequence[Request],
    sampling: Sampling,
    resolution_px: int,
    tick: Callable[[int], None],
    clock: Clock | None = None,
    decoder: Decoder | None = None,
) -> tuple[Latents, Pixels]:
    """Run the pipeline once; each row starts from its own seed's noise, so the batch size cannot change a picture.

    Pictures that a VAE in half precision spoils, not finite or of one colour, are decoded again in float32. `tick` gets
    the steps done.
    """
    clock = clock or Clock(family.device)
    first, refiner = (family.begun_by, family) if family.begun_by else (family, family.refiner)
    side = resolution_px // first.pixels_per_latent
    shape = (first.unet.config.in_channels, side, side)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(r.seed)) for r in chunk]
    begin = {"latents": torch.stack(noise).to(first.device, first.dtype)}
    if refiner is None:
        latents = _denoise(first, chunk, sampling, tick, clock, **begin)
    else:
        latents = _denoise(first, chunk, sampling, tick, clock, **begin, denoising_end=sampling.handover)
        begun = steps_around_handover(sampling, first.scheduler_config)[0]
        latents = _denoise(
            refiner, chunk, sampling, lambda step: tick(min(begun + step, sampling.num_inference_steps)), clock,
            image=latents.to(refiner.device, refiner.dtype), denoising_start=sampling.handover,
            aesthetic_score=sampling.aesthetic_score, negative_aesthetic_score=sampling.negative_aesthetic_score,
        )  # fmt: skip
    last = refiner or first
    with clock.part("decode"):
        return latents, decode_soundly(last, latents, decoder)


def decode_soundly(family: Family, latents: Latents, decoder: Decoder | None = None) -> Pixels:
    """Return pictures of latents; those that a VAE in half precision spoils are decoded again in float32.

    A small `decoder` takes the VAE's place, unless it makes a picture of one colour.
    """
    if decoder is not None:
        pixels = decoder.decode(latents)
        if not any(is_spoilt(picture) for picture in pixels):
            return pixels
    pixels = family.decode(latents)
    if family.vae.dtype != torch.float32 and any(is_spoilt(picture) for picture in pixels):
        with family.precise_vae():
            return family.decode(latents)
    return pixels


def _denoise(
    family: Family, chunk: Sequence[Request], sampling: Sampling, tick: Callable[[int], None], clock: Clock, **more: Any
) -> Latents:
    """Return what the family's pipeline makes of its input, as latents; `tick` gets the steps done."""
    with clock.part("text"):
        texts = family.encode_text([r.prompt for r in chunk] + [sampling.negative_prompt])
        told = family.told(texts.select(range(len(chunk))), texts.select([len(chunk)] * len(chunk)))

    def after(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        tick(step + 1)
        return kwargs

    pipe = family.pipeline(make_scheduler(family.scheduler_config, sampling.scheduler))
    fresh = [torch.Generator().manual_seed(seed_of("steps", r.seed)) for r in chunk]  # for samplers that add noise
    with clock.part("denoise"), family.casting(family.unet):
        return pipe(
            **told, **more, generator=fresh, num_inference_steps=sampling.num_inference_steps, output_type="latent",
            guidance_scale=sampling.guidance_scale, callback_on_step_end=after,
        ).images  # fmt: skip


def make_scheduler(config: Mapping[str, Any], name: str) -> Any:
    """Return a diffusers scheduler with the base's own betas and prediction type, which are in its configuration."""
    import diffusers

    return getattr(diffusers, SCHEDULERS[name]).from_config(config)


def steps_around_handover(sampling: Sampling, scheduler_config: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many of a model's steps are before the handover, and how many after it."""
    scheduler = make_scheduler(scheduler_config, sampling.scheduler)
    scheduler.set_timesteps(sampling.num_inference_steps)
    n = scheduler.config.num_train_timesteps
    before = int((scheduler.timesteps >= round(n - sampling.handover * n)).sum())  # as diffusers has it
    return before, len(scheduler.timesteps) - before


def check_resolution(family: Family, resolution_px: int) -> int:
    """Return the resolution, or the base's own for 0; one that the UNet cannot halve often enough is a UserError."""
    require_multiple(resolution_px, family.size_step_px)
    return resolution_px or family.native_resolution_px


def require_multiple(resolution_px: int, step_px: int) -> None:
    """Refuse a resolution that is no multiple of what the base asks for; 0, the base's own, always is."""
    if resolution_px % step_px:
        below = resolution_px // step_px * step_px
        raise UserError(
            f"resolution={resolution_px}: this base needs a multiple of {step_px}.",
            f"Use {f'{below} or ' if below else ''}{below + step_px}; 0 takes the base's own.",
        )


def _partner(family: Family) -> dict[str, dict[str, str]]:
    """Return the identity of the model that draws together with the family."""
    partners = {"refiner_identity": family.refiner, "begun_by_identity": family.begun_by}
    return {name: partner.identity for name, partner in partners.items() if partner}


def _clear(out: Path) -> None:
    """Remove the pictures of other settings from a folder that `draw` made."""
    (out / MANIFEST).unlink(missing_ok=True)
    for request in read_json(out / SETTINGS)["requests"]:
        (out / Request(**request).file).unlink(missing_ok=True)
    (out / SETTINGS).unlink()
