"""What a run will need, phase by phase, traced on the real modules without their weights: memory and work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from torch import Tensor, nn

from limner.adapters.full import Full
from limner.drawing import follow_objective
from limner.families.family import Family, rows_together
from limner.families.frozen import stand_for
from limner.families.load import sketch
from limner.families.recognise import is_refiner
from limner.generate.draw import check_resolution, steps_around_handover
from limner.learning import make_training, unneeded
from limner.machine import Place, require_gpu
from limner.pictures.fit import Size
from limner.prepare.check import Checked
from limner.recipe import Recipe
from limner.train.checkpoint import BESIDE_BYTES
from limner.train.company import Company
from limner.train.loop import Training
from limner.train.trace import Cost, Trace, tracing
from limner.types import Batch

GIB = 2**30
LIBRARIES_BYTES = int(0.53 * GIB)
"""What Python and the libraries hold while they compute, before any tensor; measured, see docs/plan.md."""
KEPT_SHARE = 0.5
"""On the CPU: of what comes and goes, so much more is held by kernels at work and by an allocator that keeps what was
freed; measured, see docs/plan.md."""
CUDA_BYTES = int(0.5 * GIB)
"""What CUDA itself holds on a GPU: its context, kernels, workspaces; usual, not measured here."""
CUDA_HOST_BYTES = GIB
"""What CUDA's libraries add to a process's own memory; usual, not measured here."""


@dataclass(frozen=True)
class Work:
    """One phase of a run: what it holds at its peak, and what it does."""

    name: str
    weights_bytes: int
    """Of the base, on the device."""
    learning_bytes: int
    """Of what learns and its optimizer's state, on the device."""
    passing_bytes: int
    """Of what comes and goes within the phase: activations, gradients, copies."""
    host_bytes: int
    """What lies on the host whatever the device: the weights from before a full fine-tuning, a checkpoint's copy."""
    costs: tuple[tuple[Cost, float | int], ...] = ()
    """What is done, each with how many times."""

    def needs(self, device: str) -> tuple[int, int]:
        """Return the peak on the device ("cpu", "cuda") and on the host, in bytes; on the CPU they are the same."""
        tensors = self.weights_bytes + self.learning_bytes + self.passing_bytes
        if device == "cpu":
            whole = LIBRARIES_BYTES + tensors + self.host_bytes + int(KEPT_SHARE * self.passing_bytes)
            return whole, whole
        return tensors + CUDA_BYTES, LIBRARIES_BYTES + CUDA_HOST_BYTES + self.host_bytes

    @property
    def mostly(self) -> str:
        """Return what the peak consists of, the largest first."""
        parts = {"weights": self.weights_bytes, "what learns": self.learning_bytes, "activations": self.passing_bytes}
        large = sorted(parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in large if size >= 0.005 * GIB)


@dataclass(frozen=True)
class Forecast:
    """The phases of a run in their order, and what it leaves on the disk."""

    recipe: Recipe
    at: Place
    phases: tuple[Work, ...]
    checkpoint_bytes: int
    result_bytes: int
    slots: int = 1
    """How many runs train together on the one base."""

    @property
    def peak(self) -> Work:
        """Return the phase that needs most."""
        return max(self.phases, key=lambda work: work.needs(self.at.device.type))

    @property
    def peak_bytes(self) -> int:
        """Return what the run needs on its device."""
        return self.peak.needs(self.at.device.type)[0]

    @property
    def disk_bytes(self) -> int:
        """Return what one run folder will hold at most: checkpoints that are kept and one being written, the result."""
        own = self.recipe.checkpoint
        return (own.keep + 1 + (own.choose != "last")) * self.checkpoint_bytes + self.result_bytes


def forecast(recipe: Recipe, checked: Checked, steps: int, at: Place, *, slots: int = 1) -> Forecast:
    """Trace one piece of every phase of the run, on the recipe's own modules, adapter, optimizer and loop.

    With `slots` as many such runs train together. No weights are read and nothing is computed; it takes seconds,
    whatever the size of the base.
    """
    require_gpu(at, recipe.offload)
    base = sketch(recipe.base, dtype=at.dtype)
    frozen = sketch(recipe.base, dtype=at.dtype, storage=recipe.base_storage, offload=recipe.offload)
    stand_for(frozen.unet, at.device.type)
    with tracing(at.device.type) as trace:
        drawn = tuple(_Run(trace, base, recipe, checked, steps, at, slots).compared())
    frozen.is_shared = slots > 1
    with tracing(at.device.type) as trace:
        run = _Run(trace, frozen, recipe, checked, steps, at, slots)
        phases = (*run.phases(), *drawn)
        return Forecast(recipe, at, phases, run.checkpoint_bytes, run.result_bytes, slots)


@dataclass(frozen=True)
class _Examples:
    """A source that gives the same rows, of the largest shape, at every step."""

    rows: Batch

    def batch(self, step: int, *, seed: int) -> Batch:
        return self.rows


@dataclass
class _Run:
    """The phases of a run as they follow one another on one family without weights."""

    trace: Trace
    family: Family
    recipe: Recipe
    checked: Checked
    steps: int
    at: Place
    slots: int = 1
    checkpoint_bytes: int = 0
    result_bytes: int = 0
    part_bytes: dict[str, int] = field(default_factory=dict[str, int])
    """Weights of the base by part, and of the model that draws together with it where that is there."""

    def __post_init__(self) -> None:
        for part, module in self.family.parts.items():
            before = self.trace.live_bytes
            self._hold(module)
            self.part_bytes[part] = self.trace.live_bytes - before
        self.resolution_px = check_resolution(self.family, self.recipe.resolution)
        follow_objective(self.family, self.recipe)

    @property
    def weights_bytes(self) -> int:
        """What of the base is there at present; a part that learns counts as it was before."""
        return sum(size for part, size in self.part_bytes.items() if part not in self.family.aside)

    def compared(self) -> Iterator[Work]:
        """Yield the drawing of the comparison, unless the base draws nothing alone."""
        sampling = self.recipe.generation
        if sampling.begun_by or not is_refiner(self.family.kind):
            with self._together(bool(sampling.refiner or sampling.begun_by)):
                requests = self.recipe.evaluation.requests("token", "noun")
                yield self._drawn("draw", sampling.batch, 2 * len(requests))

    def phases(self) -> Iterator[Work]:
        """Yield every phase of the run but the comparison."""
        sampling, prior, preview = self.recipe.generation, self.recipe.prior, self.recipe.preview
        validation, draws = self.recipe.validation, self.recipe.draws_while_training
        begun = bool(sampling.begun_by and (draws or prior.active))
        with self._together(begun):
            yield Work("load", self.weights_bytes - self._aside_by_then(), 0, 0, 0)
            if self.recipe.distill.images:
                yield self._drawn("pictures", sampling.batch, self.recipe.distill.images)
            if prior.active:
                yield self._drawn("class pictures", sampling.batch, prior.count)
            yield self._prepare()
        with self._together(begun and draws):
            some = self.recipe.model_copy(update={"accumulate": min(2, self.recipe.accumulate)})  # a third adds nothing
            examples = _Examples(self._batch())
            trainings = [self._made(some, examples) for _ in range(self.slots)]
            yield self._train(trainings)
            if preview.every_steps:
                previews = self.steps // preview.every_steps * preview.images
                with self.family.whole():
                    yield self._drawn("preview", min(sampling.batch, preview.images), previews)
            if validation.every_steps:
                at_once = len(validation.requests("token", "noun"))
                times = 1 + ceil(self.steps / validation.every_steps)  # the base, and the last step
                with self.family.whole():
                    yield self._drawn("validation", min(sampling.batch, at_once), times * at_once)
            yield self._save(trainings[0])

    @property
    def _encodes_first(self) -> bool:
        """Tell whether pictures and captions are encoded before the UNet is read."""
        return self.slots == 1 and self.recipe.encodes_first(class_pictures=False)

    def _aside_by_then(self) -> int:
        """Return the weights that are not needed any more when the UNet is read, the last of all."""
        aside = unneeded(self.recipe, self.family) if self._encodes_first else ()
        return sum(self.part_bytes[part] for part in aside)

    def _hold(self, module: nn.Module) -> None:
        """Count a module's weights as long as it is there."""
        for weight in module.state_dict().values():
            self.trace.hold(weight)

    @contextmanager
    def _together(self, needed: bool) -> Iterator[None]:
        """Within this block the model that draws together with the base is there, if it is needed."""
        if not needed:
            yield
            return
        before, (setting, name) = self.trace.live_bytes, self.recipe.generation.partner
        partner = sketch(name, dtype=self.at.dtype)
        for module in partner.parts.values():
            self._hold(module)
        setattr(self.family, setting, partner)
        del partner
        self.part_bytes[setting] = self.trace.live_bytes - before
        yield
        setattr(self.family, setting, None)
        del self.part_bytes[setting]

    @torch.no_grad()
    def _drawn(self, name: str, batch: int, pictures: int) -> Work:
        """Draw a batch: a denoising step of each model that takes part, and the decoding."""
        sampling, times = self.recipe.generation, ceil(pictures / batch)
        first, last = self.family.begun_by or self.family, self.family.refiner or self.family
        shares = [(first, sampling.num_inference_steps)]
        if first is not last:
            before, after = (steps_around_handover(sampling, one.scheduler_config) for one in (first, last))
            shares = [(first, before[0]), (last, after[1])]
        costs = [(self._denoising(family, batch), times * steps) for family, steps in shares]
        with self.trace.measuring() as decoding:
            last.decode(self._latents(last, batch))
        return self._work(name, *costs, (decoding, times))

    def _denoising(self, family: Family, batch: int) -> Cost:
        """Return the cost of one denoising step of a batch."""
        rows = batch * (2 if self.recipe.generation.guidance_scale > 1 else 1)
        latents, texts = self._latents(family, rows), family.encode_text([""] * rows)
        with self.trace.measuring() as step:
            family.predict(latents, torch.zeros(rows, dtype=torch.int64, device="meta"), texts)
        return step

    def _latents(self, family: Family, rows: int) -> Tensor:
        side = self.resolution_px // family.pixels_per_latent
        return torch.zeros(rows, family.unet.config.in_channels, side, side, dtype=self.at.dtype, device="meta")

    def _prepare(self) -> Work:
        """Encode a batch of pictures of the largest shape, and the longest caption."""
        width, height = self._largest()[0]
        together = rows_together((width, height))
        with self.trace.measuring() as pictures:
            self.family.encode_pixels(torch.zeros(together, 3, height, width))
        with self.trace.measuring() as text:
            self.family.encode_text([self._longest_caption()])
        entries = len(self.checked.examples) + (self.recipe.prior.count if self.recipe.prior.active else 0)
        entries *= 2 if self.recipe.pictures.flip else 1
        captions = len({example.caption for example in self.checked.examples})
        work = self._work("prepare", (pictures, ceil(entries / together)), (text, captions))
        unread = self.part_bytes["unet"] if self._encodes_first else 0
        return replace(work, weights_bytes=work.weights_bytes - unread)

    def _largest(self) -> tuple[Size, int]:
        """Return the shape and the number of pictures of the batch with most pixels."""
        shapes, sizes = self.checked.shapes, self.checked.order(self.recipe.batch).batch_sizes()
        batches = [(shape, rows) for shape, batch in zip(shapes, sizes, strict=True) for rows in batch]
        return max(batches, key=lambda batch: batch[0][0] * batch[0][1] * batch[1])

    def _batch(self) -> Batch:
        """Return the largest batch of the run, class pictures among it."""
        (width, height), instances = self._largest()
        rows = instances * (2 if self.recipe.prior.active else 1)
        cell = self.family.pixels_per_latent
        channels = self.family.vae.config.latent_channels
        captions = (self._longest_caption(),) * rows
        return Batch(
            ids=("",) * rows,
            moments=torch.zeros(rows, 2, channels, height // cell, width // cell),
            conditioning=self.family.encode_text(captions).to("cpu", torch.float32),
            weight=torch.ones(rows),
            is_prior=tuple(row >= instances for row in range(rows)),
            captions=captions,
        )

    def _longest_caption(self) -> str:
        return max((example.caption for example in self.checked.examples), key=self.family.token_count)

    def _made(self, recipe: Recipe, examples: _Examples) -> Training:
        """Make a training; one that is to train with others is off the base."""
        training = make_training(self.family, recipe, self.checked, examples, self.steps)
        if self.slots > 1:
            training.adapter.detach()
        return training

    def _train(self, trainings: Sequence[Training]) -> Work:
        """Take one step that finds the optimizers' state there, as all but the first do."""
        take = Company(trainings).step if self.slots > 1 else trainings[0].step
        for update in (update for training in trainings for update in training.updates):
            for parameter in update.parameters.values():
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for part in update.parts:
                if self.at.device.type == "cuda" and part.settings.get("foreach", True) is None:
                    part.settings["foreach"] = True  # torch's choice there: all weights of a group at once
                part.optimizer.step()
        for training in trainings:
            training.adapter.zero_grad()
        with self.trace.measuring() as cost:
            take()
        for training in trainings:
            training.adapter.zero_grad()
        self.checkpoint_bytes = _bytes(trainings[0].state()[0].values())
        work = self._work("train", (cost, self.steps * self.recipe.accumulate / trainings[0].accumulate))
        is_copied = self.recipe.checkpoint.every_steps and self.checkpoint_bytes <= BESIDE_BYTES
        return replace(work, host_bytes=work.host_bytes + (self.slots * self.checkpoint_bytes if is_copied else 0))

    def _save(self, training: Training) -> Work:
        """Gather what the result's files hold."""
        with self.trace.measuring() as cost:
            if isinstance(self.recipe.adapter, Full):
                dtype = getattr(torch, self.recipe.adapter.save_precision)
                with self.family.whole():
                    modules = self.family.parts.values()
                    model = [weight.detach().to(dtype) for module in modules for weight in module.state_dict().values()]
                    self.result_bytes = 2 * _bytes(model)
            else:
                self.result_bytes = _bytes(training.adapter.state_dict().values())
        return self._work("save", (cost, 2))

    def _work(self, name: str, *costs: tuple[Cost, float | int]) -> Work:
        """Return a phase that holds what is there between its pieces of work, and at most what one of them needs."""
        peak = max((cost for cost, _ in costs), key=lambda cost: cost.peak_bytes)
        return Work(
            name,
            self.weights_bytes,
            learning_bytes=peak.begun_bytes - self.weights_bytes,
            passing_bytes=peak.peak_bytes - peak.begun_bytes,
            host_bytes=peak.host_bytes,
            costs=costs,
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
