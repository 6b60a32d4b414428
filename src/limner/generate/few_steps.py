"""Adapters that draw in few steps: how they want to be drawn with, what does not fit them, and who teaches them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from limner.errors import UserError
from limner.generate.draw import SCHEDULERS, Sampling
from limner.spec import Spec

HEADER = "few_steps"
"""Under which name a file's header says how its adapter is drawn with, in Limner's own JSON."""
NAMES = {"ddim": "DDIM", "dpm++": "DPM++", "euler": "Euler", "lcm": "LCM", "tcd": "TCD"}
assert NAMES.keys() == SCHEDULERS.keys()


class FewSteps(Spec):
    """How pictures are drawn with a few-step adapter; the header of its file says so, for whoever loads it."""

    kind: Literal["lcm", "pcm"] = "lcm"
    """What it was trained as: "lcm" is a latent consistency LoRA (arXiv:2311.05556), "pcm" a phased one, which jumps
    from phase to phase (arXiv:2405.18407)."""
    scheduler: Literal["lcm", "tcd"] = "lcm"
    """The sampler that it is made for."""
    steps: int = Field(default=4, ge=1, le=50)
    """Denoising steps per picture."""
    guidance_range: tuple[float, float] = (1.0, 2.0)
    """Guidance on top of what is built in: the lower end is used, from the upper one on pictures blur."""
    FITTING: ClassVar[tuple[str, ...]] = ("lcm", "tcd")
    """The samplers that draw with it."""

    @property
    def most(self) -> int:
        """Return the number of steps beyond which more bring nothing."""
        return 8 if self.kind == "lcm" else self.steps

    @property
    def called(self) -> str:
        """Return what such an adapter is called."""
        return f"{self.kind.upper()}-LoRA"

    @property
    def one(self) -> str:
        """Return what it is called, with the article."""
        return f"{'an' if self.kind == 'lcm' else 'a'} {self.called}"

    @property
    def hint(self) -> str:
        """Return in one line how to draw with it, for other programs' users."""
        low, high = self.guidance_range
        steps = f"{self.steps} to {self.most}" if self.most > self.steps else f"{self.steps}"
        return f"{NAMES[self.scheduler]} sampler, {steps} steps, CFG scale {low:g} to {high:g}"

    def sampling(self, usual: Sampling) -> Sampling:
        """Return how to draw with it, where one would draw as `usual` without it."""
        return usual.model_copy(update={"scheduler": self.scheduler, "num_inference_steps": self.steps,
                                        "guidance_scale": self.guidance_range[0]})  # fmt: skip

    def fitted(
        self, usual: Sampling, given: Mapping[str, Any], name: str, *, force_guidance: bool = False
    ) -> tuple[Sampling, list[str]]:
        """Return how to draw with it when the user asked for some settings (`given`), and what to say about it.

        Raises:
            UserError: the sampler that was asked for cannot draw with it.
        """
        fitted, lines = self.sampling(usual), list[str]()
        if "generation.scheduler" in given:
            if usual.scheduler not in self.FITTING:
                raise UserError(
                    f"scheduler is {NAMES[usual.scheduler]}; {self.called} needs {NAMES[self.scheduler]} ({name}).",
                    "Leave generation.scheduler out, or set it to lcm or tcd.",
                )
            fitted = fitted.model_copy(update={"scheduler": usual.scheduler})
        if "generation.num_inference_steps" in given:
            fitted = fitted.model_copy(update={"num_inference_steps": usual.num_inference_steps})
            if line := self._steps(usual.num_inference_steps):
                lines.append(line)
        if "generation.guidance_scale" in given:
            guidance, line = self._guidance(usual.guidance_scale, force=force_guidance)
            fitted = fitted.model_copy(update={"guidance_scale": guidance})
            lines += [line] if line else []
        drawn = (f"{NAMES[fitted.scheduler]} scheduler, {fitted.num_inference_steps} steps, "
                 f"guidance {fitted.guidance_scale:g}")  # fmt: skip
        return fitted, [f"{name} is {self.one}: {drawn}", *lines]

    def _steps(self, asked: int) -> str:
        """Return what to say about a number of steps that is asked for; "" where it fits."""
        if self.kind == "pcm" and asked != self.steps:
            return (f"{asked} steps: {self.one} jumps over {self.steps} phases, and is made for {self.steps} steps; "
                    "others end elsewhere.")  # fmt: skip
        if asked > self.most:
            return (f"{asked} steps: {self.one} is made for {self.steps} to {self.most}; more cost time and bring "
                    "nothing.")  # fmt: skip
        return ""

    def _guidance(self, asked: float, *, force: bool) -> tuple[float, str]:
        """Return the guidance to draw with where one is asked for, and what to say about it."""
        low, high = self.guidance_range
        if asked <= high:
            return asked, ""
        if force:
            return asked, f"This is {self.one}: guidance {asked:g} will blur; kept, as --force-guidance says."
        used = (low + high) / 2
        return used, (f"This is {self.one}: guidance {asked:g} will blur; using {used:g}. "
                      f"Pass --force-guidance to keep {asked:g}.")  # fmt: skip


def few_steps_of(about: Mapping[str, Any], where: object) -> FewSteps | None:
    """Return how the adapter of a file's header is drawn with; None where it is no few-step adapter.

    Raises:
        UserError: the header says something that this version does not understand.
    """
    if HEADER not in about:
        return None
    try:
        return FewSteps.model_validate(about[HEADER])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, (HEADER, *first["loc"])))
        raise UserError(
            f"{where}: its header says {key}={first['input']!r}, which this version does not know.",
            "Use a newer Limner, or write the file again.",
        ) from None


class Distill(Spec):
    """Few-step learning (`objective.kind=consistency`): whom the base shows while it teaches, and what it draws."""

    adapter: Path | None = None
    """A run, or a .safetensors file, of a subject: it stays attached to teacher and student, so that the subject too
    comes in few steps. None: the base alone."""
    prompts: Path | None = None
    """A text file with a prompt a line: what the base draws to learn from, where no pictures are given."""
    words: tuple[str, ...] = ()
    """Class words such as ["dog", "house"], put into prompts of many kinds, where there is no file of prompts."""
    images: int = Field(default=0, ge=0)
    """How many pictures the base draws to learn from; `limner distill` without pictures takes 200. 0: they are
    given."""
    inference_steps: int = Field(default=4, ge=1, le=8)
    """How many steps the adapter is drawn with unless another number is asked for; its file says so. With
    objective.phases it is as many as these."""

    @field_validator("adapter", "prompts")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().resolve() if value else None  # a resumed run finds it from any folder

    def few_steps(self, phases: int) -> FewSteps:
        """Return what the file of the adapter will say of how it is drawn with, by the phases that it jumps over."""
        if phases > 1:
            return FewSteps(kind="pcm", scheduler="tcd", steps=phases)
        return FewSteps(steps=self.inference_steps)
