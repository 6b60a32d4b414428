"""What every objective must do, over every member of the recipe's union."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from limner import recipe
from limner.objectives import Consistency, Denoising, Predict, Teacher
from limner.schedule import Schedule

OBJECTIVES = get_args(get_args(recipe.Objective)[0])
CASES = {"plain": Denoising(snr_gamma=0), "min-snr": Denoising(), "offset": Denoising(noise_offset=0.1),
         "middle": Denoising(timesteps="logit_normal"), "noisy": Denoising(timesteps="high_noise"),
         "consistency": Consistency(), "one guidance": Consistency(guidance_range=(4, 4), solver_steps=20),
         "phases": Consistency(phases=4)}  # fmt: skip
SCHEDULES = {
    kind: Schedule(torch.linspace(0.999, 0.005, 1000), kind)  # type: ignore[arg-type]
    for kind in ("epsilon", "v_prediction", "sample")
}


def test_every_member_has_a_case() -> None:
    assert {type(objective) for objective in CASES.values()} == set(OBJECTIVES)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def objective(request: pytest.FixtureRequest) -> Denoising | Consistency:
    return request.param


@pytest.fixture(params=[name for name, case in CASES.items() if isinstance(case, Denoising)])
def denoising(request: pytest.FixtureRequest) -> Denoising:
    found = CASES[request.param]
    assert isinstance(found, Denoising)
    return found


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES.keys())
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return request.param


def draws(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def guess(x_t: Tensor, t: Tensor) -> Tensor:
    return 0.3 * x_t + 0.001 * t.view(-1, 1, 1, 1)


def losses_of(
    objective: Denoising | Consistency, predict: Predict, x_0: Tensor, schedule: Schedule, *seeds: int,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the losses, with a base to learn from where the objective needs one."""
    base = Teacher(lambda x_t, t: 0.5 * x_t, lambda x_t, t: 0.4 * x_t, torch.ones(len(x_0), dtype=torch.bool))
    teacher = base if objective.needs_base else None
    return objective.losses(predict, x_0, schedule, draws=draws(*seeds), mask=mask, teacher=teacher)


def test_one_finite_loss_per_row(objective: Denoising | Consistency, schedule: Schedule) -> None:
    losses = losses_of(objective, guess, torch.randn(6, 4, 8, 8), schedule, 1, 2)
    assert losses.shape == (6,)
    assert bool((losses > 0).all())
    assert bool(losses.isfinite().all())


def test_deterministic_under_its_generators(objective: Denoising | Consistency, schedule: Schedule) -> None:
    x_0 = torch.randn(4, 4, 8, 8)
    first, second, other = (losses_of(objective, guess, x_0, schedule, s) for s in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_rows_loss_does_not_depend_on_its_neighbours(objective: Denoising | Consistency, schedule: Schedule) -> None:
    x_0 = torch.randn(3, 4, 8, 8)
    together = losses_of(objective, guess, x_0, schedule, 7, 8, 9)
    turned = losses_of(objective, guess, x_0[[2, 0, 1]], schedule, 9, 7, 8)
    torch.testing.assert_close(turned, together[[2, 0, 1]])


def test_zero_for_the_perfect_prediction(denoising: Denoising, schedule: Schedule) -> None:
    """The prediction that implies the true x_0 has no loss."""
    x_0 = torch.randn(4, 4, 8, 8)

    def perfect(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.coefficients(t, x_t)
        return schedule.target(x_0, (x_t - alpha * x_0) / sigma, t)

    losses = denoising.losses(perfect, x_0, schedule, draws=draws(1))
    torch.testing.assert_close(losses, torch.zeros(4), rtol=0, atol=1e-6)


def test_a_masked_pixel_does_not_count(objective: Denoising | Consistency, schedule: Schedule) -> None:
    x_0, mask = torch.randn(2, 4, 8, 8), torch.ones(2, 1, 8, 8)
    whole = losses_of(objective, guess, x_0, schedule, 3)
    torch.testing.assert_close(losses_of(objective, guess, x_0, schedule, 3, mask=mask), whole)
    mask[:, :, :4] = 0

    def spoilt(x_t: Tensor, t: Tensor) -> Tensor:
        prediction = guess(x_t, t).clone()
        prediction[:, :, :4] += 100.0
        return prediction

    half = losses_of(objective, guess, x_0, schedule, 3, mask=mask)
    torch.testing.assert_close(losses_of(objective, spoilt, x_0, schedule, 3, mask=mask), half)


def test_timesteps_are_drawn_where_they_are_asked_for() -> None:
    draw = {kind: Denoising(timesteps=kind).draw_timesteps(20_000, 1000, draws(0)[0]).float()
            for kind in ("uniform", "logit_normal", "high_noise")}  # fmt: skip
    for t in draw.values():
        assert 0 <= t.min() < 20
        assert 980 <= t.max() < 1000
    assert draw["uniform"].mean() == pytest.approx(499.5, abs=10)
    assert draw["logit_normal"].std() == pytest.approx(208, abs=5)  # of the logistic of a standard normal
    assert draw["high_noise"].mean() == pytest.approx(750, abs=10)  # 1 - u^3 has the mean 3/4
    part = Denoising(timestep_range=(0.2, 0.4)).draw_timesteps(20_000, 1000, draws(0)[0])
    assert (int(part.min()), int(part.max())) == (200, 399)
    with pytest.raises(ValueError, match="0 <= from < to <= 1"):
        Denoising(timestep_range=(0.4, 0.2))


def test_zero_terminal_snr_is_diffusers_own() -> None:
    from diffusers import DDIMScheduler

    asked = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plain = Schedule(DDIMScheduler(**asked).alphas_cumprod, "v_prediction")
    theirs = DDIMScheduler(**asked, rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(plain.rescaled().alphas_cumprod, theirs, rtol=1e-4, atol=1e-6)
    assert plain.rescaled().alphas_cumprod[-1] == 0


def test_taught_rows_follow_the_teacher_and_the_others_do_not(schedule: Schedule) -> None:
    x_0 = torch.randn(4, 4, 8, 8)
    taught = torch.tensor([False, True, False, True])
    plain = Denoising().losses(guess, x_0, schedule, draws=draws(3))
    by_itself = Denoising().losses(guess, x_0, schedule, draws=draws(3), teacher=Teacher(guess, guess, taught))
    assert by_itself[taught].tolist() == [0.0, 0.0]
    assert torch.equal(by_itself[~taught], plain[~taught])
