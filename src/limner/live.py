"""Live drawing: a run or a base that stays loaded, its adapters folded in, and draws again while a prompt is typed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from limner import machine
from limner.adapter_set import AdapterSet
from limner.adapters.strength import Strength
from limner.drawing import small_decoder
from limner.errors import UserError
from limner.generate.draw import check_resolution
from limner.generate.warm import Warm
from limner.opening import Adapters, opened, what_draws
from limner.rundir import write_atomically
from limner.train.compiled import keep_compiled
from limner.watch import Watch


@dataclass(frozen=True)
class Live:
    """A warm model with its adapters folded into the base's weights, which come back bit for bit.

    with limner.live("runs/dog", adapters=[("lcm.safetensors", 1.0)]) as live:
        live.picture("a photo of sks dog").show()
        live.set({"dog": 0.5, "lcm": 1.0})
    """

    warm: Warm
    adapters: AdapterSet
    """What is loaded, by name; `load` adds more."""

    def picture(self, prompt: str, seed: int = 0) -> Image.Image:
        """Draw a prompt from the noise of a seed."""
        return self.warm.picture(prompt, seed)

    def set(self, strengths: Mapping[str, Strength | float]) -> None:
        """Fold in these adapters, each at its strength, and no others."""
        self.adapters.set(strengths)
        self.adapters.merge()
        self.warm.forget()


@contextmanager
def live(
    source: str | Path,
    *,
    adapters: Adapters = (),
    settings: Mapping[str, Any] | None = None,
    force_guidance: bool = False,
    watch: Watch | None = None,
) -> Iterator[Live]:
    """Yield a run or a base, with `adapters`, that draws one picture after the other without being set up again.

    Raises:
        UserError: something that the user can mend, found before the base is loaded.
    """
    watch = watch or Watch()
    wanted = what_draws(source, adapters, settings, force_guidance=force_guidance, is_live=True)
    setting, name = wanted.sampling.partner
    if name:
        raise UserError(f"generation.{setting}={name}: live drawing is by one model.", "Leave it out.")
    at = machine.place(wanted.recipe.device, wanted.recipe.precision)
    fast = wanted.recipe.fast if "fast" in (settings or {}) else "off"  # not as a run was trained
    is_compiled = "compile" in fast
    if "graph" in fast:
        raise UserError(f"fast={fast!r}: training is recorded, and live drawing can only be compiled.",
                        "Set fast=compile, or leave it out.")  # fmt: skip
    if is_compiled:
        machine.require_compiler("fast='compile'", at.device)
    decoder = small_decoder(wanted.recipe, dtype=at.dtype, device=at.device)
    with opened(wanted, watch) as ready:
        if decoder:
            watch.say(f"decodes with {decoder.name}, not with the base's VAE")
        resolution_px = check_resolution(ready.family, wanted.recipe.resolution)
        one = Live(Warm(ready.family, wanted.sampling, resolution_px, decoder), ready.adapters)
        one.set(ready.adapters.active)
        with _compiled(one, watch) if is_compiled else nullcontext():
            yield one


@contextmanager
def _compiled(drawn: Live, watch: Watch) -> Iterator[None]:
    """Within this block the UNet computes as it was compiled for the first picture; the rest is drawn as it stands.

    Nothing is compiled while somebody types: of other shapes is what a prompt of several windows is told by.
    """
    unet = drawn.warm.family.unet
    keep_compiled()
    unet.forward = torch.compile(unet.forward, dynamic=False)
    try:
        with watch.phase("compile"):
            drawn.picture("")
        with torch.compiler.set_stance("eager_on_recompile"):
            yield
    finally:
        del unet.forward


def follow(
    drawn: Live, prompts: Iterable[str], out: Path, *, seed: int = 0,
    tell: Callable[[str, float], None] = lambda prompt, seconds: None,
) -> None:  # fmt: skip
    """Draw each prompt as it comes into one and the same file, which is always whole.

    `tell` gets the prompt and how long its picture took, in seconds. An empty prompt draws nothing.
    """
    for prompt in prompts:
        if not prompt.strip():
            continue
        started, data = time.perf_counter(), io.BytesIO()
        drawn.picture(prompt, seed).save(data, "PNG")
        write_atomically(out, data.getvalue())
        tell(prompt, time.perf_counter() - started)
