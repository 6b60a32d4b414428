"""Latent consistency: the boundary, one step against a written-out reference, and a case whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limner.objectives import Consistency, Predict, Teacher
from limner.schedule import Schedule

MEAN, SPREAD = 0.7, 1.3
"""Of the Gaussian data."""


@pytest.fixture(params=["epsilon", "v_prediction", "sample"])
def schedule(request: pytest.FixtureRequest) -> Schedule:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return Schedule((1 - betas).cumprod(0), request.param)


def exact_denoiser(schedule: Schedule):
    """Return what a perfect model predicts for data from a Gaussian: E[x_0 | x_t] in the schedule's terms."""

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.coefficients(t, x_t)
        variance = alpha.square() * SPREAD**2 + sigma.square()
        x_0 = MEAN + alpha * SPREAD**2 / variance * (x_t - alpha * MEAN)
        return schedule.target(x_0, (x_t - alpha * x_0) / sigma, t)

    return predict


def exact_end(schedule: Schedule, x_t: Tensor, t: Tensor) -> Tensor:
    """Return where the path of the probability flow through x_t ends, at timestep 0: it keeps the standard score."""

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.coefficients(t, x_t)
        return alpha * MEAN, (alpha.square() * SPREAD**2 + sigma.square()).sqrt()

    mean, spread = moments(t)
    first_mean, first_spread = moments(torch.zeros_like(t))
    return first_mean + first_spread * (x_t - mean) / spread


def taught_by(told: Predict, untold: Predict, rows: int) -> Teacher:
    return Teacher(told, untold, torch.ones(rows, dtype=torch.bool))


def draws(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_at_the_boundary_the_input_is_the_answer(schedule: Schedule) -> None:
    x = torch.randn(2, 4, 8, 8)
    asked = Consistency()
    c_skip, c_out = asked.boundary(torch.tensor([0, 999]), x)
    assert (float(c_skip[0]), float(c_out[0])) == (1.0, 0.0)
    assert (float(c_skip[1]), float(c_out[1])) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    wild = asked.jump(lambda x_t, t: 100 * torch.ones_like(x_t), x, torch.tensor([0, 0]), schedule)
    torch.testing.assert_close(wild, x, rtol=1e-4, atol=1e-4)


def test_the_boundary_is_that_of_the_sampler() -> None:
    from diffusers import LCMScheduler

    sampler = LCMScheduler()
    for t in (0, 19, 499, 999):
        ours = [float(c) for c in Consistency().boundary(torch.tensor([t]), torch.zeros(1, 1))]
        theirs = [float(c) for c in sampler.get_scalings_for_boundary_condition_discrete(t)]
        assert ours == pytest.approx(theirs, abs=1e-7)
    sampler.set_timesteps(4, original_inference_steps=50)
    assert set(sampler.timesteps.tolist()) <= set(Consistency().starts(1000).tolist())


def test_a_ddim_step_is_diffusers_own() -> None:
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
                           set_alpha_to_one=False, timestep_spacing="trailing")  # fmt: skip
    theirs.set_timesteps(50)
    ours = Schedule(theirs.alphas_cumprod, "v_prediction")
    x_t, prediction = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for t in (999, 519, 39):
        wanted = theirs.step(prediction, t, x_t, return_dict=False)[0]
        found = ours.ddim_step(prediction, x_t, torch.tensor([t]), torch.tensor([t - 20]))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("phases", [1, 2, 3, 4, 6, 8, 16])
def test_phases_begin_where_the_sampler_stands(phases: int) -> None:
    from diffusers import TCDScheduler

    sampler = TCDScheduler()
    sampler.set_timesteps(phases)
    asked = Consistency(phases=phases)
    starts, ends = asked.starts(1000).tolist(), asked.ends(1000).tolist()
    stops = [*sampler.timesteps.tolist()[1:], 0]
    assert [end for start, end in zip(starts, ends, strict=True) if start in sampler.timesteps.tolist()][::-1] == stops
    for start, end in zip(starts, ends, strict=True):
        assert end < start
        assert not set(stops) & set(range(end + 1, start))


def test_a_jump_over_a_phase_is_the_samplers(schedule: Schedule) -> None:
    """What is learned is what is drawn with: a step of diffusers' TCDScheduler without fresh noise."""
    from diffusers import TCDScheduler

    sampler = TCDScheduler(prediction_type=schedule.prediction_type)
    sampler.set_timesteps(4)
    asked, x_t, prediction = Consistency(phases=4), torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    for t, end in zip(sampler.timesteps.tolist(), [*sampler.timesteps.tolist()[1:], 0], strict=True):
        found = asked.jump(lambda *_: prediction, x_t, torch.tensor([t]), schedule, torch.tensor([end]))
        wanted = sampler.step(prediction, t, x_t, eta=0.0, return_dict=False)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    still = asked.jump(lambda *_: prediction, x_t, torch.tensor([499]), schedule, torch.tensor([499]))
    torch.testing.assert_close(still, x_t, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("phases", [1, 4])
def test_one_step_is_the_papers(schedule: Schedule, phases: int) -> None:
    """The same numbers, written out from the paper for one row: Eq. 9, 13 and 17; of phases arXiv:2405.18407 Eq. 9."""
    asked = Consistency(guidance_range=(6.0, 16.0), huber=0.01, phases=phases)
    x_0 = torch.randn(1, 4, 8, 8, dtype=torch.float64)

    def student(x_t: Tensor, t: Tensor) -> Tensor:
        return 0.4 * x_t + 0.0002 * t.view(-1, 1, 1, 1)

    def told(x_t: Tensor, t: Tensor) -> Tensor:
        return 0.5 * x_t

    def untold(x_t: Tensor, t: Tensor) -> Tensor:
        return 0.45 * x_t

    found = asked.losses(student, x_0, schedule, draws=draws(3), teacher=taught_by(told, untold, 1))

    (draw,) = draws(3)
    noise = torch.randn(1, 4, 8, 8, generator=draw).double()
    n = int(torch.randint(0, 50, (1,), generator=draw))
    w = float(6 + 10 * torch.rand(1, generator=draw)) - 1  # the paper counts guidance from 0
    t, s = 20 * (n + 1) - 1, max(20 * n - 1, 0)
    a = schedule.alphas_cumprod
    x_t = math.sqrt(a[t]) * x_0 + math.sqrt(1 - a[t]) * noise

    def clean(prediction: Tensor, x: Tensor, t: int) -> Tensor:
        alpha, sigma = math.sqrt(a[t]), math.sqrt(1 - a[t])
        return {"epsilon": (x - sigma * prediction) / alpha, "v_prediction": alpha * x - sigma * prediction,
                "sample": prediction}[schedule.prediction_type]  # fmt: skip

    stop = max(edge for edge in (0, 259, 499, 759) if edge < t)

    def jump(x: Tensor, t: int) -> Tensor:
        u = 10 * t
        x_0 = clean(student(x, torch.tensor([t])), x, t)
        if phases > 1:
            noise = (x - math.sqrt(a[t]) * x_0) / math.sqrt(1 - a[t])
            return math.sqrt(a[stop]) * x_0 + math.sqrt(1 - a[stop]) * noise
        return 0.25 / (u**2 + 0.25) * x + u / math.sqrt(u**2 + 0.25) * x_0

    ends = [clean(p(x_t, torch.tensor([t])), x_t, t) for p in (told, untold)]
    noises = [(x_t - math.sqrt(a[t]) * end) / math.sqrt(1 - a[t]) for end in ends]
    end, eps = ((1 + w) * pair[0] - w * pair[1] for pair in (ends, noises))
    nearer = math.sqrt(a[s]) * end + math.sqrt(1 - a[s]) * eps
    error = jump(x_t, t) - jump(nearer, s)
    wanted = ((error.square() + 0.01**2).sqrt() - 0.01).mean()
    torch.testing.assert_close(found, wanted[None], rtol=1e-5, atol=1e-7)


def test_the_true_jump_of_a_gaussian_has_next_to_no_loss(schedule: Schedule) -> None:
    """Data from a Gaussian: the exact denoiser's paths, and so their ends, are known. More solver steps: less loss."""

    def truth(x_t: Tensor, t: Tensor) -> Tensor:
        """Return the prediction whose jump is the true end."""
        c_skip, c_out = Consistency().boundary(t, x_t)
        x_0 = (exact_end(schedule, x_t, t) - c_skip * x_t) / c_out.clamp(min=1e-12)
        alpha, sigma = schedule.coefficients(t, x_t)
        return schedule.target(x_0, (x_t - alpha * x_0) / sigma, t)

    x_0 = MEAN + SPREAD * torch.randn(64, 1, 4, 4, dtype=torch.float64)
    perfect = exact_denoiser(schedule)

    def loss(steps: int) -> float:
        asked = Consistency(guidance_range=(1, 1), solver_steps=steps, huber=1e-6)
        return float(
            asked.losses(truth, x_0, schedule, draws=draws(0), teacher=taught_by(perfect, perfect, x_0.shape[0])).mean()
        )

    losses = [loss(steps) for steps in (10, 50, 250)]
    assert losses[0] > 3 * losses[1] > 9 * losses[2]
    assert losses[2] < 1e-2


@pytest.mark.parametrize("phases", [1, 3])
def test_distilled_on_a_gaussian_it_jumps_to_the_true_end(phases: int) -> None:
    """A student with one affine map for each timestep, which can hold the answer, finds it from the loss alone."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    schedule = Schedule((1 - betas).cumprod(0), "sample")
    asked = Consistency(guidance_range=(1, 1), solver_steps=10, huber=0.1, phases=phases)
    starts, ends = asked.starts(1000), asked.ends(1000)
    maps = torch.zeros(1000, 2, dtype=torch.float64)
    maps.requires_grad_(True)
    optimizer = torch.optim.Adam([maps], lr=0.05)
    perfect = exact_denoiser(schedule)

    def student(x_t: Tensor, t: Tensor) -> Tensor:
        slope, shift = maps[t].unbind(1)
        return slope.view(-1, 1, 1, 1) * x_t + shift.view(-1, 1, 1, 1)

    for step in range(1500):
        x_0 = MEAN + SPREAD * torch.randn(256, 1, 2, 2, generator=torch.Generator().manual_seed(step)).double()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 1500)
        optimizer.zero_grad()
        asked.losses(
            student, x_0, schedule, draws=draws(step), teacher=taught_by(perfect, perfect, 256)
        ).mean().backward()
        optimizer.step()

    noise = torch.randn(512, 1, 2, 2, generator=torch.Generator().manual_seed(9)).double()
    for t, end in zip(starts.tolist(), ends.tolist(), strict=True):
        x_t = schedule.add_noise(MEAN + SPREAD * torch.randn_like(noise), noise, torch.full((512,), t))
        wanted = solved(schedule, perfect, x_t, t, end, asked)
        with torch.no_grad():
            found = asked.jump(student, x_t, torch.full((512,), t), schedule, torch.full((512,), end))
        assert float((found - wanted).abs().mean()) < 0.05 * SPREAD, t


def solved(schedule: Schedule, predict: Predict, x: Tensor, t: int, end: int, asked: Consistency) -> Tensor:
    """Return where the path stands at timestep `end`, as the solver itself walks it, step by step."""
    rows = x.shape[0]
    for start in reversed([s for s in asked.starts(1000).tolist() if end < s <= t]):
        now, earlier = torch.full((rows,), start), torch.full((rows,), max(start - 1000 // asked.solver_steps, 0))
        x = schedule.ddim_step(predict(x, now), x, now, earlier)
    return x
