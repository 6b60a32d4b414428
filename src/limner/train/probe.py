"""One step before the first, to find out whether there is memory for it; everything is bit for bit as before."""

from __future__ import annotations

from pathlib import Path

import torch

from limner.files import passing
from limner.train.checkpoint import load_checkpoint, save_checkpoint
from limner.train.loop import Training


def probe(training: Training, scratch: Path, step: int) -> None:
    """Save a checkpoint under `scratch`, take the step of that number (from 0), and go back to where it began.

    What is undone is undone as a run is resumed: optimizers are made afresh, and the checkpoint is loaded.
    """
    draws = torch.get_rng_state()
    with passing(scratch):
        checkpoint = save_checkpoint(training, scratch, keep=1)
        try:
            training.index = step
            training.step()
            training.forget()
            load_checkpoint(training, checkpoint)
        finally:
            torch.set_rng_state(draws)
