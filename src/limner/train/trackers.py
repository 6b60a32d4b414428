"""What a run tells to other programs that the user asked for: TensorBoard, Weights & Biases, MLflow and their kin."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from limner.errors import UserError

Tracker = Literal[
    "tensorboard", "wandb", "mlflow", "trackio", "swanlab", "comet_ml", "aim", "clearml", "dvclive"
]  # fmt: skip
RUN_NAMES = {"mlflow": "run_name", "trackio": "name", "swanlab": "experiment_name"}
"""Trackers that keep runs in projects, and what they call a run's name; the project is "limner"."""
PICTURES: dict[str, dict[str, str]] = {"tensorboard": {"dataformats": "NHWC"}, "wandb": {}, "swanlab": {}}
"""Trackers that take pictures, and how theirs are to be given."""


def require_trackers(names: Sequence[Tracker]) -> None:
    """Refuse a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            package = name.replace("_", "-")
            raise UserError(f"tracking: {name} is not installed.", f"pip install {package}, or leave it out.")


class Trackers:
    """The trackers of one run, through accelerate's classes. One that fails is said and left out: the run goes on."""

    def __init__(
        self, names: Sequence[Tracker], folder: Path, settings: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._say = say
        self._live: dict[str, Any] = {name: None for name in names}
        if names:
            from accelerate import PartialState

            PartialState()  # accelerate's logger, which its trackers use, asks for it
        self._each(lambda name: self._live.update({name: make_tracker(name, folder)}))
        self._each(lambda name: self._live[name].start())
        self._each(lambda name: self._live[name].store_init_configuration(dict(settings)))

    def log(self, values: Mapping[str, float | None], step: int) -> None:
        """Tell numbers of a step; what is None is not told."""
        told = {name: value for name, value in values.items() if value is not None}
        self._each(lambda name: self._live[name].log(told, step=step))

    def log_pictures(self, what: str, files: Sequence[Path], step: int) -> None:
        """Show pictures of one size to the trackers that take some."""
        import numpy as np
        from PIL import Image

        if not files or not self._live.keys() & PICTURES.keys():
            return
        pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

        def show(name: str) -> None:
            if name in PICTURES:
                self._live[name].log_images({what: pixels}, step=step, **PICTURES[name])

        self._each(show)

    def close(self) -> None:
        """Close them."""
        self._each(lambda name: self._live[name].finish())

    def _each(self, act: Callable[[str], object]) -> None:
        for name in list(self._live):
            try:
                act(name)
            except Exception as error:  # a server that is away or a login that is missing is no reason to end a run
                del self._live[name]
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                self._say(f"tracking: {name} is left out from here on ({why})")


def make_tracker(name: str, folder: Path) -> Any:
    """Return accelerate's tracker for a run folder, not started yet; its package is not imported."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return kind(name, logging_dir=folder)
    if name == "dvclive":
        return kind(dir=str(folder / name))
    if name == "wandb":
        return kind("limner", name=folder.name, dir=str(folder))
    if name in RUN_NAMES:
        return kind("limner", **{RUN_NAMES[name]: folder.name})
    return kind(folder.name, logging_dir=folder) if kind.requires_logging_directory else kind(folder.name)
