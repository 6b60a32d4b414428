"""What the comparison with stable-diffusion.cpp rests on, where that program is not: one schedule, one measure."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import EulerDiscreteScheduler, PNDMScheduler

from benchmarks.sd_cpp_draws import STEPS, TOLERANCE, apart
from limner.families.source import ASSETS
from limner.generate.draw import make_scheduler


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers and a new NumPy
@pytest.mark.parametrize("steps", [2, STEPS])
def test_the_samplers_noise_levels_are_those_of_the_programs_discrete_schedule(steps: int) -> None:
    """Its `DiscreteScheduler` takes t from 999 to 0 in equal steps, and begins with noise at the first level."""
    config = PNDMScheduler.load_config(str(ASSETS / "sd15" / "scheduler"))
    assert isinstance(config, dict)
    sampler = make_scheduler({**config, "timestep_spacing": "linspace"}, "euler")
    assert isinstance(sampler, EulerDiscreteScheduler)
    sampler.set_timesteps(steps)
    t = [999 - 999 * i // (steps - 1) for i in range(steps)]
    assert sampler.timesteps.tolist() == t
    alphas = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[t]
    np.testing.assert_allclose(sampler.sigmas.numpy(), [*np.sqrt((1 - alphas) / alphas), 0], rtol=1e-4)
    assert float(sampler.init_noise_sigma) == float(sampler.sigmas[0])


def test_a_difference_is_measured_in_steps_of_255() -> None:
    one, other = np.full((2, 2, 3), 10.0), np.full((2, 2, 3), 10.0)
    assert apart(one, other) == {"mean": 0.0, "largest": 0.0}
    other[0, 0, 0] = 22
    assert apart(one, other) == {"mean": 1.0, "largest": 12.0}
    assert apart(one, other)["mean"] > TOLERANCE["mean"]
