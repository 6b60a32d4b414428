"""Questions about a set of images as a whole: did what the base makes of the class change as a distribution?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from limner.metrics.distances import cubic, frechet_distance, gaussian, kernel_distance
from limner.metrics.metric import Question, View
from limner.metrics.scores import Level

SPLITS = 100
LEAST_FOR_FRECHET = 2000
"""Below this many images a Frechet distance is mostly bias, and the bias is not the same for all models."""
Kernel = Callable[[Tensor, Tensor], Tensor]
Features = Float[Tensor, "rows dim"]


def _unit_gaussian(x: Features, y: Float[Tensor, "columns dim"]) -> Float[Tensor, "rows columns"]:
    """Return CMMD's kernel on features of length 1, as its authors take it."""
    normalise = torch.nn.functional.normalize
    return gaussian(normalise(x.double(), dim=1), normalise(y.double(), dim=1))


def _from_base_by(kernel: Kernel, factor: float) -> Callable[[View], Float[Tensor, " images"]]:
    def per_image(view: View) -> Float[Tensor, " images"]:
        x, y = view.images, view.base
        return factor * kernel_distance(kernel(x, x), kernel(y, y), kernel(x, y))

    return per_image


def _base_itself_by(kernel: Kernel, factor: float) -> Callable[[View], Level | None]:
    def level(view: View) -> Level | None:
        """Return how far the base is from itself with other seeds: the 95 % quantile over random halves."""
        within = kernel(view.base, view.base)
        found = []
        for a, b in _halves(view.prompt_index):
            found.append(kernel_distance(within[a][:, a], within[b][:, b], within[a][:, b]).mean())
        if not found:
            return None
        value = factor * float(torch.quantile(torch.stack(found), 0.95))
        title = "95 % of comparisons of the base with itself, other seeds"
        return Level(name="another_seed", title=title, value=value, pairs=len(view.base) // 2)

    return level


def _halves(prompt: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return random splits of the rows into halves that hold as many images of each prompt, partner by partner."""
    generator = torch.Generator().manual_seed(0)
    groups = [(prompt == p).nonzero().flatten() for p in prompt.unique()]
    if sum(len(rows) // 2 for rows in groups) < 2:
        return []
    splits = []
    for _ in range(SPLITS):
        drawn = [rows[torch.randperm(len(rows), generator=generator)] for rows in groups]
        first = torch.cat([rows[: len(rows) // 2] for rows in drawn])
        second = torch.cat([rows[len(rows) // 2 : len(rows) // 2 * 2] for rows in drawn])
        splits.append((first, second))
    return splits


def _frechet(view: View) -> Float[Tensor, " images"]:
    return frechet_distance(view.images, view.base)


def _frechet_of_base(view: View) -> Level | None:
    """Return how far one half of the base's images is from the other; half as many images are twice as biased."""
    splits = _halves(view.prompt_index)
    if not splits:
        return None
    first, second = splits[0]
    value = float(frechet_distance(view.base[first], view.base[second]).mean())
    return Level(name="another_seed", title="one half of the base's images to the other", value=value, pairs=len(first))


_SAYS = (
    "How far the images of the class, as a set, are from the base's own with other seeds: {}. 0 is no change; the mean "
    "over all images' shares."
)
CLASS_KERNEL_DISTANCE = Question(
    kind="class_kd",
    title="Distance of the class, as a set",
    says=_SAYS.format("KID's cubic kernel"),
    better="lower",
    sets=("class",),
    per_image=_from_base_by(cubic, 1.0),
    levels=(_base_itself_by(cubic, 1.0),),
    relative_to_base=True,
    least_images=2,
)
CLASS_MMD = Question(
    kind="class_mmd",
    title="Distance of the class, as a set, by a wide kernel",
    says=_SAYS.format("CMMD's Gaussian kernel, times 1000"),
    better="lower",
    sets=("class",),
    per_image=_from_base_by(_unit_gaussian, 1000.0),
    levels=(_base_itself_by(_unit_gaussian, 1000.0),),
    relative_to_base=True,
    least_images=2,
)
CLASS_FRECHET = Question(
    kind="class_fd",
    title="Frechet distance of the class",
    says=_SAYS.format("between two Gaussians, as in FID"),
    better="lower",
    sets=("class",),
    per_image=_frechet,
    levels=(_frechet_of_base,),
    relative_to_base=True,
    least_images=LEAST_FOR_FRECHET,
)
SET_QUESTIONS = (CLASS_KERNEL_DISTANCE, CLASS_MMD, CLASS_FRECHET)
