"""What is minimised for one batch: one loss per example, from which the loop makes each slot's mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field, field_validator
from torch import Tensor

from limner.machine import to_device
from limner.schedule import Schedule
from limner.spec import Spec
from limner.types import Latents, PerExample, Timesteps

Predict = Callable[[Latents, Timesteps], Tensor]
"""The UNet with the batch's conditioning filled in: (x_t, t) -> prediction."""


@dataclass(frozen=True)
class Teacher:
    """The untouched base: the same weights with the adapter off, so that there is no second model."""

    predict: Predict
    """What it predicts for the rows that are taught; of the others no sense."""
    unconditional: Predict
    """What it predicts for them without a prompt."""
    taught: Bool[Tensor, " batch"]
    """Which rows learn from it."""


SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""Constants of the boundary condition, as few-step samplers have them."""


class Denoising(Spec):
    """Predict the noise (or v, or x_0, as the base does) that was added to the latents."""

    kind: Literal["denoising"] = "denoising"
    snr_gamma: float = Field(default=5.0, ge=0)
    """Min-SNR weighting: caps the weight of nearly clean timesteps (arXiv:2303.09556). 0 is off: all weigh alike."""
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    """Adds this much of a constant per channel to the noise, for darker and brighter pictures; 0 is off, 0.05 usual."""
    timesteps: Literal["uniform", "logit_normal", "high_noise"] = "uniform"
    """Which timesteps are trained how often: all alike; the middle most (arXiv:2403.03206); or mostly noisy ones, where
    composition and style are decided (1 - u^3)."""
    timestep_range: tuple[float, float] | None = None
    """Train only this part of the noise, from clean 0 to pure noise 1. None takes what the base is made for: all of it,
    [0, 1]; of SDXL's refiner [0, 0.2]."""
    prediction_type: Literal["base", "epsilon", "v_prediction"] = "base"
    """What the UNet predicts: what the base does, or another that it has to learn (only with adapter.kind=full)."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last step is pure noise (arXiv:2305.08891); needs v-prediction."""
    needs_base: ClassVar[bool] = False
    """Whether every row is taught by the untouched base, with its prompt and without one."""

    @field_validator("timestep_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is None:
            return value
        if not 0 <= value[0] < value[1] <= 1:
            raise ValueError(f"must be two numbers 0 <= from < to <= 1, not {list(value)}")
        if value[1] - value[0] < 0.002:
            raise ValueError(f"holds no timestep; {list(value)} must be 0.002 wide or more")
        return value

    @property
    def trained(self) -> tuple[float, float]:
        """Return the part of the noise that is trained, from clean 0 to pure noise 1."""
        return self.timestep_range or (0.0, 1.0)

    def draw_timesteps(self, rows: int, num_train_timesteps: int, draws: torch.Generator) -> Timesteps:
        """Return a training timestep per row."""
        low, high = (round(edge * num_train_timesteps) for edge in self.trained)
        if self.timesteps == "uniform":
            return torch.randint(low, high, (rows,), generator=draws, device=draws.device)
        if self.timesteps == "logit_normal":
            u = torch.randn(rows, generator=draws, device=draws.device).sigmoid()
        else:
            u = 1 - torch.rand(rows, generator=draws, device=draws.device) ** 3
        return (low + u * (high - low)).long().clamp(max=high - 1)

    def losses(
        self,
        predict: Predict,
        x_0: Latents,
        schedule: Schedule,
        *,
        draws: Sequence[torch.Generator],
        own: Sequence[int] | None = None,
        mask: Tensor | None = None,
        teacher: Teacher | None = None,
    ) -> PerExample:
        """Return the loss of each row; rows are equal blocks, one per slot, each with a generator in `draws`.

        Draws are made for every row of `x_0`; with `own` only the losses of those rows are computed, and `predict`,
        `mask` and `teacher` are about them. Rows that are taught have as their target what the teacher predicts,
        instead of what was added; without a prompt it is not asked.
        """
        rows = x_0.shape[0] // len(draws)
        noise = torch.cat([torch.randn(rows, *x_0.shape[1:], generator=g, device=g.device) for g in draws])
        t = torch.cat([self.draw_timesteps(rows, schedule.num_train_timesteps, g) for g in draws])
        if self.noise_offset:
            shape = (rows, x_0.shape[1], 1, 1)
            offset = torch.cat([torch.randn(shape, generator=g, device=g.device) for g in draws])
            noise = noise + self.noise_offset * offset
        noise, t = to_device(noise, x_0.device).to(x_0), to_device(t, x_0.device)
        if own is not None:
            x_0, noise, t = (rows[list(own)] for rows in (x_0, noise, t))
        x_t, target = schedule.add_noise(x_0, noise, t), schedule.target(x_0, noise, t)
        if teacher is not None:
            with torch.no_grad():
                taught = teacher.taught.view(-1, 1, 1, 1)
                target = torch.where(taught, teacher.predict(x_t, t).to(target), target)
        squared = (predict(x_t, t).float() - target).square()
        losses = _mean(squared, mask)
        if self.snr_gamma:
            losses = losses * schedule.min_snr_weight(t, self.snr_gamma)
        return losses


class Consistency(Spec):
    """Learn to jump from any noise to the clean picture in one step (arXiv:2310.04378, and as a LoRA arXiv:2311.05556).

    Two neighbouring points of one path must be taken to the same end. The path is the base's own: one DDIM step with
    classifier-free guidance, so that what comes out needs no guidance any more. With several phases the path is cut,
    and a jump ends where its piece does (arXiv:2405.18407).
    """

    kind: Literal["consistency"] = "consistency"
    solver_steps: int = Field(default=50, ge=2, le=1000)
    """Into how many DDIM steps the base's path is cut; few-step samplers then draw at some of these."""
    phases: int = Field(default=1, ge=1, le=16)
    """Into how many pieces the path is cut, each of which is jumped over at once. 1 is an LCM: it jumps from anywhere
    to the clean picture, and a sampler adds noise again. More, a PCM, is drawn with in just so many steps, without
    fresh noise: easier to learn, so that less training keeps more."""
    guidance_range: tuple[float, float] = (6.0, 16.0)
    """Guidance that is built in, drawn anew for each picture, in the scale of `generation.guidance_scale`. The papers'
    is [6, 16]; equal ends, such as [4, 4], build in one guidance, which suits a small base."""
    huber: float = Field(default=0.001, gt=0)
    """Errors far below this count as squares, far above it as they are (pseudo-Huber)."""

    @field_validator("guidance_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError(f"must be two numbers 1 <= from <= to, not {list(value)}")
        return value

    @field_validator("phases")
    @classmethod
    def _fewer(cls, value: int, info: Any) -> int:
        if value >= info.data.get("solver_steps", value + 1):
            raise ValueError(f"must be fewer than solver_steps, {info.data['solver_steps']}")
        return value

    needs_base: ClassVar[bool] = True
    prediction_type: ClassVar[Literal["base"]] = "base"
    zero_terminal_snr: ClassVar[bool] = False

    def boundary(self, t: Timesteps, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_skip and c_out, shaped to multiply `like` row by row: at t = 0 the input itself is the answer.

        arXiv:2310.04378 App. C.1, with the scale that diffusers' LCMScheduler has: c_skip = s^2 / (u^2 + s^2),
        c_out = u / sqrt(u^2 + s^2), u = 10 t, s = 0.5.
        """
        u = TIMESTEP_SCALING * t.to(like.dtype).view(-1, *[1] * (like.ndim - 1))
        total = u.square() + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, u / total.sqrt()

    def jump(
        self, predict: Predict, x_t: Latents, t: Timesteps, schedule: Schedule, end: Timesteps | None = None
    ) -> Latents:
        """Return where the model jumps to from x_t: f(x_t, t) = c_skip x_t + c_out x_0(x_t). arXiv:2310.04378 Eq. 9.

        With several phases it is one DDIM step to the timestep `end`, where it stays as it is (arXiv:2405.18407 Eq. 9).
        """
        if self.phases > 1:
            assert end is not None, "of several phases each jump has an end of its own"
            return schedule.ddim_step(predict(x_t, t).float(), x_t, t, end)
        c_skip, c_out = self.boundary(t, x_t)
        return c_skip * x_t + c_out * schedule.predicted_x_0(predict(x_t, t).float(), x_t, t)

    def starts(self, num_train_timesteps: int) -> Timesteps:
        """Return the timesteps that the path is cut at, rising; the last is pure noise."""
        width = num_train_timesteps // self.solver_steps
        return torch.arange(1, self.solver_steps + 1) * width - 1

    def ends(self, num_train_timesteps: int) -> Timesteps:
        """Return the timestep that each of `starts` jumps to: where its phase ends, which is where the next begins.

        Phases begin at the timesteps that few-step samplers take for as many steps: every (solver_steps / phases)th,
        counted from pure noise and rounded down.
        """
        starts = self.starts(num_train_timesteps)
        first = torch.arange(self.phases) * self.solver_steps // self.phases  # of each phase, from pure noise
        edges = torch.cat([torch.zeros(1, dtype=torch.long), starts.flip(0)[first].flip(0)])
        return edges[torch.searchsorted(edges, starts) - 1]

    def losses(
        self,
        predict: Predict,
        x_0: Latents,
        schedule: Schedule,
        *,
        draws: Sequence[torch.Generator],
        own: Sequence[int] | None = None,
        mask: Tensor | None = None,
        teacher: Teacher | None = None,
    ) -> PerExample:
        """Return the loss of each row; rows are equal blocks, one per slot, each with a generator in `draws`.

        `predict` is the model that learns; the teacher is asked about all rows. Draws are made for every row; with
        `own` only those rows' losses are computed, and `predict`, `mask` and `teacher` are about them.
        """
        if teacher is None:
            raise ValueError("consistency is learned from a teacher, and none was given")
        rows = x_0.shape[0] // len(draws)
        noise = torch.cat([torch.randn(rows, *x_0.shape[1:], generator=g) for g in draws]).to(x_0)
        starts, ends = (which(schedule.num_train_timesteps) for which in (self.starts, self.ends))
        chosen = torch.cat([torch.randint(0, self.solver_steps, (rows,), generator=g) for g in draws])
        low, high = self.guidance_range
        guidance = torch.cat([low + (high - low) * torch.rand(rows, generator=g) for g in draws]).to(x_0)
        t, end = starts[chosen].to(x_0.device), ends[chosen].to(x_0.device)
        if own is not None:
            x_0, noise, t, end, guidance = (rows[list(own)] for rows in (x_0, noise, t, end, guidance))
        earlier = (t - schedule.num_train_timesteps // self.solver_steps).clamp(min=0)
        x_t = schedule.add_noise(x_0, noise, t)
        with torch.no_grad():
            told, untold = teacher.predict(x_t, t).float(), teacher.unconditional(x_t, t).float()
            guided = untold + guidance.view(-1, 1, 1, 1) * (told - untold)
            nearer = schedule.ddim_step(guided, x_t, t, earlier)
            target = self.jump(predict, nearer, earlier, schedule, end)
        error = (self.jump(predict, x_t, t, schedule, end) - target).square()
        losses = (error + self.huber**2).sqrt() - self.huber
        return _mean(losses, mask)


def _mean(errors: Latents, mask: Tensor | None) -> PerExample:
    """Return each row's mean error; a mask weighs the latents."""
    if mask is not None:
        # dividing by the mask's mean keeps a small subject's loss on the scale of a whole picture
        errors = errors * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
    return errors.mean(dim=(1, 2, 3))
