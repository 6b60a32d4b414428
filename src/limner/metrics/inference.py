"""The schema of inference.json: how fast and how large drawing is, with the base and with what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from limner.metrics.scores import read_written
from limner.spec import Spec

State = Literal["base", "unmerged", "merged", "whole"]


class Pair(NamedTuple):
    """What is varied: how many pictures are drawn at a time, and in how many steps."""

    batch: int
    steps: int


@dataclass(frozen=True)
class Taken:
    """What drawing one batch once has taken, in seconds and, where the hardware tells, in joules."""

    seconds: float
    """From the prompts to pictures in memory, everything included."""
    text: float
    denoise: float
    decode: float
    joules: float | None = None


class Ratio(Spec):
    """How many times the base's seconds an arm takes, from pairs that were drawn in the same round."""

    ratio: float
    """Hodges and Lehmann's estimate over the rounds: 1.1 takes a tenth longer."""
    low: float | None
    """Lower end of the 95 % interval (Wilcoxon's signed ranks); null with fewer than six rounds, which have none."""
    high: float | None
    """Upper end of the 95 % interval."""
    rounds: int
    """How many rounds stand behind it."""
    conclusive: bool
    """True only where there is an interval, and it leaves out 1."""


class Memory(Spec):
    """What drawing needs, measured in a draw of its own that is not timed; null where the system does not tell."""

    weights_bytes: int
    """Weights of the model and of the adapter, counted."""
    working_bytes: int | None
    """The peak above what was held before the draw: by CUDA's allocator, else by the process's resident memory."""
    process_peak_bytes: int | None
    """On a CPU: the peak of the whole process's resident memory, the other arms' weights and all libraries in it."""
    process_anonymous_bytes: int | None
    """On a CPU: of that peak, what is not pages of files, such as a checkpoint's, which the system can drop."""


class Measurement(Spec):
    """One arm at one number of steps and one batch. Times are of one picture: those of a batch by its pictures."""

    arm: str
    """Its name, as in `arms`."""
    steps: int
    """Denoising steps."""
    batch: int
    """Pictures drawn at a time."""
    median_s: float
    """Seconds per picture: half of the rounds took less."""
    p95_s: float | None
    """Seconds per picture that 95 of 100 rounds stay below; null with fewer than 20 rounds, which cannot tell."""
    pictures_per_s: float
    """All pictures of all rounds, by all their seconds."""
    text_s: float
    """Of it reading the prompts, the median."""
    denoise_s: float
    """Of it denoising, the median."""
    decode_s: float
    """Of it decoding latents to pixels, the median."""
    joules: float | None
    """Energy per picture, the mean; null where the hardware does not tell."""
    to_base: Ratio | None
    """The cost against the base; null for the base itself."""
    seconds: tuple[float, ...]
    """Seconds of each round's whole batch, in the order of the rounds."""


class MergeCheck(Spec):
    """How near the prediction with the adapter merged comes to that with the adapter attached."""

    largest: float
    """Largest difference of two predicted values, which have about unit variance."""
    share_of_effect: float | None
    """That difference's length by the length of what the adapter changes; null where it changes nothing."""
    agrees: bool | None
    """Whether it is within float32's tolerance (rtol 1e-4, atol 1e-5); null in half precision, which rounds weights."""


class InferenceArm(Spec):
    """One way of drawing."""

    name: str
    """What it is called: base, unmerged, merged, whole; of several runs with the run's name before it."""
    state: State
    """base; unmerged: the adapter beside the base's weights; merged: folded into them; whole: a model of its own."""
    run: str | None
    """Name of the run; null for the base."""
    disk_bytes: int
    """What it takes on disk: the adapter's files beside a base that is there already, or a whole model.

    A merged model is counted as it would be written in this number format.
    """
    memory: dict[int, Memory]
    """By batch."""
    merge: MergeCheck | None = None
    """Whether it draws what the unmerged adapter draws; null for all but merged ones."""


class LeftOut(Spec):
    """What was asked for and not measured."""

    steps: int
    """Denoising steps."""
    batch: int
    """Pictures drawn at a time."""
    why: str
    """In words, with what to do."""


class InferenceDesign(Spec):
    """What was measured, and under which conditions."""

    base: str
    """What the user called the base."""
    identity: dict[str, str]
    """Hashes of its parts."""
    runs: tuple[str, ...]
    """Names of all runs that were measured in this session, side by side."""
    session: str
    """When it began; the same in the files of all runs that were measured together."""
    usual_steps: int
    """Denoising steps of the runs' recipe."""
    sampling: dict[str, str | int | float]
    """Sampler, guidance, side of the pictures."""
    precision: str
    """Number format of the base."""
    device: str
    """What computed."""
    hardware: dict[str, Any]
    """Processor, cores, threads, memory, GPU."""
    versions: dict[str, str]
    """Of Python and the packages."""
    energy: str
    """Whose energy was counted, or why none was."""
    budget_s: float
    """Seconds that were allowed."""
    taken_s: float
    """Seconds that it took, warm-up included."""
    stopped: bool
    """Whether the user ended it before its time."""


class Inference(Spec):
    """Everything that was measured about drawing with one run, beside its base."""

    schema_version: Literal[1] = 1
    """Raised when a field changes its meaning."""
    design: InferenceDesign
    """What was measured."""
    arms: tuple[InferenceArm, ...]
    """The base first."""
    measurements: tuple[Measurement, ...]
    """By arm, batch and steps."""
    left_out: tuple[LeftOut, ...]
    """What did not fit into the time."""

    def arm(self, state: State) -> InferenceArm | None:
        """Return the arm in a state, if it was measured."""
        return next((arm for arm in self.arms if arm.state == state), None)

    def find(self, state: State, steps: int, batch: int) -> Measurement | None:
        """Return what was measured in a state, at a number of steps and a batch."""
        arm, asked = self.arm(state), (steps, batch)
        return next((m for m in self.measurements if arm and m.arm == arm.name and (m.steps, m.batch) == asked), None)

    def usual(self, state: State) -> Measurement | None:
        """Return the measurement in a state that comes nearest to the recipe's own steps, at the smallest batch."""
        arm = self.arm(state)
        own = [m for m in self.measurements if arm and m.arm == arm.name]
        return min(own, key=lambda m: (m.batch, abs(m.steps - self.design.usual_steps)), default=None)


def read_inference(path: Path) -> Inference | None:
    """Return what an inference.json holds, None where there is none; of another schema it is a UserError."""
    if not path.is_file():
        return None
    return read_written(Inference, path, f"Measure again: limner measure {path.parent}")


def together(measured: Sequence[Inference]) -> bool:
    """Tell whether several runs were measured in one session, so that their seconds may stand side by side."""
    return len({one.design.session for one in measured}) == 1
