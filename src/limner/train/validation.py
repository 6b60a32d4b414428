"""The loss on held-out pictures: the same noise at the same timesteps every time, so that steps can be compared."""

from __future__ import annotations

from dataclasses import replace

import torch

from limner.objectives import Denoising
from limner.seeds import generator
from limner.train.loop import Training
from limner.train.slots import Source

TIMESTEPS = 8
"""At so many timesteps, evenly spread over those that are trained, each picture's loss is taken."""


@torch.no_grad()
def validation_loss(training: Training, held_out: Source, pictures: int) -> float:
    """Return the mean loss over `pictures` held-out pictures, whose source gives one a batch.

    The weights are those to judge. Nothing that training draws is touched, and no more than a row is computed at once.
    """
    family, objective = training.family, training.objective
    assert isinstance(objective, Denoising), "a run that keeps its best checkpoint denoises"
    n = family.schedule.num_train_timesteps
    low, high = (edge * n for edge in objective.trained)
    losses: list[torch.Tensor] = []
    with training.evaluating():
        for number in range(pictures):
            batch = held_out.batch(number, seed=0)
            text = batch.conditioning
            if training.adapter.learns_text:
                text = replace(text, hidden=family.encode_text(batch.captions, learn=True).hidden)
            text = text.to(family.device, family.dtype)
            x_0 = family.scale_latents(batch.moments[:, 0].float()).to(family.device)
            for place in range(TIMESTEPS):
                t = int(low + (place + 0.5) * (high - low) / TIMESTEPS)
                only_t = {"timesteps": "uniform", "timestep_range": (t / n, (t + 1) / n)}
                losses.append(
                    objective.model_copy(update=only_t).losses(
                        lambda x_t, t, text=text: family.predict(x_t.to(family.dtype), t, text),
                        x_0,
                        family.schedule,
                        draws=[generator("validation", number, place)],
                    )
                )
    return float(torch.cat(losses).mean())
