"""How long drawing takes: several models draw in turn, in rounds, so that what disturbs the machine hits all alike."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, cycle, islice
from typing import Annotated, Any

from pydantic import Field, field_validator

from limner import machine
from limner.energy import Meter
from limner.families.family import Family
from limner.generate.clock import Clock
from limner.generate.draw import Request, Sampling, draw_batch, steps_around_handover
from limner.metrics.inference import Memory, Pair, Taken
from limner.spec import Spec

LEAST_ROUNDS = 6
"""A pair of steps and batch is planned with so many rounds or not at all: fewer have no 95 % interval."""
MOST_ROUNDS = 200
SURE = 0.8
"""Share of the time that is planned for: a machine that others use may get slower."""
PROBE = 0.2
"""A batch is tried once to see what it takes if that one draw should need no more than this share of the time."""


class Measuring(Spec):
    """What `limner measure` measures, and how long it may take."""

    inference_steps: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field((1, 2, 4, 8, 25, 50), min_length=1)
    """Denoising steps per picture."""
    batches: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Pictures drawn at a time; without it 1 and the recipe's generation.batch."""
    seconds: float = Field(60.0, gt=0, allow_inf_nan=False)
    """How long to measure, warm-up included and loading not. The dearest pairs of steps and batch are left out where
    they do not fit; the cheapest is measured in any case."""

    @field_validator("inference_steps", "batches", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value


@dataclass(frozen=True)
class Painter:
    """A model that draws, and the prompts that it is asked for."""

    name: str
    family: Family
    requests: Sequence[Request]
    weights_bytes: int


@dataclass
class Session:
    """Several models draw in turn, as far as the time goes. What they took is here, also after a stop in the middle."""

    painters: Sequence[Painter]
    sampling: Sampling
    resolution_px: int
    asked: Measuring
    meter: Meter | None = None
    taken: dict[tuple[str, Pair], list[Taken]] = field(default_factory=dict[tuple[str, Pair], list[Taken]])
    """What each round's draw of a model took."""
    memory: dict[str, dict[int, Memory]] = field(default_factory=dict[str, dict[int, Memory]])
    """By model and batch."""
    rounds: dict[Pair, int] = field(default_factory=dict[Pair, int])
    """How many rounds each pair that fits is to have."""
    left_out: dict[Pair, str] = field(default_factory=dict[Pair, str])
    """Why the others do not fit."""
    spent_s: float = 0.0

    def warm_up(self, progress: Callable[[int, int], None]) -> None:
        """Draw with each model and batch once, in few steps: see what memory it needs, and which pairs fit the time."""
        started = time.perf_counter()
        batches = sorted(set(self.asked.batches))
        possible = self._possible(batches)
        costs: dict[Pair, float] = {}
        for number, batch in enumerate(batches if possible else ()):
            least, count = Pair(batch, possible[0]), len(self.painters)
            before = {steps: costs[Pair(batches[number - 1], steps)] for steps in possible if number}
            larger = batch / batches[number - 1]
            if before and before[least.steps] * larger / count > PROBE * self.asked.seconds:
                costs |= {Pair(batch, steps): cost * larger for steps, cost in before.items()}
                continue
            try:
                drawn = self._try(
                    least, is_first=number == 0, seconds=self.asked.seconds - time.perf_counter() + started
                )
            except (RuntimeError, MemoryError) as error:
                if number == 0 or not machine.is_out_of_memory(error):
                    raise
                full = {Pair(b, steps): "did not fit into memory" for b in batches[number:] for steps in possible}
                self.left_out |= full
                break
            progress(number + 1, len(batches))
            for steps in possible:
                round_s = sum(one.seconds + one.denoise * (steps / least.steps - 1) for one in drawn)
                # more pictures never take less: what disturbs one draw must not leave the smaller batch out
                costs[Pair(batch, steps)] = max(round_s * count / len(drawn), before.get(steps, 0.0))
        self.spent_s = time.perf_counter() - started
        self.rounds, too_long = fitting(costs, self.asked.seconds, self.spent_s)
        self.left_out |= too_long

    def _try(self, least: Pair, *, is_first: bool, seconds: float) -> list[Taken]:
        """Draw once with each model; only with the first one where that tells that the seconds are too few."""
        if is_first:
            self._draw(self.painters[0], least)  # loads what is loaded when it is first used
        drawn = [self._draw_cold(self.painters[0], least)]
        if is_first or LEAST_ROUNDS * len(self.painters) * drawn[0].seconds < seconds:
            drawn += [self._draw_cold(painter, least) for painter in self.painters[1:]]
        return drawn

    def _possible(self, batches: Sequence[int]) -> list[int]:
        """Return the numbers of steps that two models which draw together can share; the others are left out."""
        family, possible = self.painters[0].family, list[int]()
        first, last = family.begun_by or family, family.refiner or family
        for steps in sorted(set(self.asked.inference_steps)):
            sampling = self.sampling.model_copy(update={"num_inference_steps": steps})
            begun, finished = (steps_around_handover(sampling, one.scheduler_config) for one in (first, last))
            if first is last or (begun[0] and finished[1]):
                possible.append(steps)
            else:
                why = f"of {steps} step{'s' * (steps > 1)} the {'refiner' if begun[0] else 'base'} takes none"
                self.left_out |= {Pair(batch, steps): why for batch in batches}
        return possible

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Draw round by round until all rounds are done or the time is over; every model once in each, in any order.

        First all pairs get the rounds that an interval takes, in turn, then what is more.
        """
        started, before = time.perf_counter(), self.spent_s
        total, done = sum(self.rounds.values()), dict.fromkeys(self.rounds, 0)
        over = False
        while not over and (todo := [pair for pair in done if done[pair] < self.rounds[pair]]):
            pair = min(todo, key=lambda pair: (done[pair] >= LEAST_ROUNDS, done[pair] / self.rounds[pair]))
            order = list(self.painters)
            random.Random(sum(done.values())).shuffle(order)
            for painter in order:
                self.taken.setdefault((painter.name, pair), []).append(self._draw(painter, pair))
            done[pair] += 1
            self.spent_s = before + time.perf_counter() - started
            progress(sum(done.values()), total)
            over = self.spent_s > self.asked.seconds
        for pair in (pair for pair, count in done.items() if not count):
            self.left_out[pair] = f"the {self.asked.seconds:g} s were over; give more seconds"

    def _draw(self, painter: Painter, pair: Pair) -> Taken:
        """Draw one batch into memory, and return what it took."""
        chunk = list(islice(cycle(painter.requests), pair.batch))
        sampling = self.sampling.model_copy(update={"num_inference_steps": pair.steps, "batch": pair.batch})
        clock = Clock(painter.family.device)
        before, started = self.meter.joules() if self.meter else 0.0, clock.now()
        draw_batch(painter.family, chunk, sampling, self.resolution_px, lambda step: None, clock)
        seconds = clock.now() - started
        joules = self.meter.joules() - before if self.meter else None
        parts = clock.seconds
        return Taken(seconds, parts["text"], parts["denoise"], parts["decode"], joules)

    def _draw_cold(self, painter: Painter, pair: Pair) -> Taken:
        """Draw after freed memory was given back, and note what memory it takes."""
        machine.return_freed_memory()
        with machine.watched_memory(painter.family.device) as memory:
            taken = self._draw(painter, pair)
        found = Memory(weights_bytes=painter.weights_bytes, **memory)
        self.memory.setdefault(painter.name, {})[pair.batch] = found
        return taken


def fitting(costs: Mapping[Pair, float], seconds: float, spent_s: float) -> tuple[dict[Pair, int], dict[Pair, str]]:
    """Return how many rounds each pair gets in the seconds, and why others get none; `costs` is seconds of a round.

    The cheapest are taken as long as they fit, the very cheapest in any case; what time is left is shared among them.
    """
    left = (seconds - spent_s) * SURE
    ordered = sorted(costs, key=lambda pair: costs[pair])
    totals = accumulate(LEAST_ROUNDS * costs[pair] for pair in ordered)
    sums = dict(zip(ordered, totals, strict=True))
    chosen = [pair for pair in ordered if sums[pair] <= left] or ordered[:1]
    spare = max(0.0, left - sums[chosen[-1]]) / len(chosen) if chosen else 0.0
    rounds = {pair: min(MOST_ROUNDS, LEAST_ROUNDS + int(spare / costs[pair])) for pair in chosen}
    too_long = {
        pair: f"did not fit into {seconds:g} s; seconds={_rounded_up(spent_s + sums[pair] / SURE)} would do"
        for pair in ordered[len(chosen) :]
    }
    return rounds, too_long


def _rounded_up(seconds: float) -> int:
    """Return seconds as a person would give them, a little more than enough."""
    step = 10 ** (len(str(int(seconds))) - 1) // 2 or 1
    return (int(seconds * 1.1) // step + 1) * step
