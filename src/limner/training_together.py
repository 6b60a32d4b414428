"""Runs that train together on one base: each takes a seat, trains, and leaves it alone; the others wait for one."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from limner.board import Board
from limner.errors import Guarded, Interrupted, UserError
from limner.families.family import Family
from limner.interrupt import noted_signals
from limner.machine import peak_memory_gib
from limner.prepare.check import Checked
from limner.ranks import Ranks
from limner.recipe import Recipe
from limner.rundir import RunDir
from limner.stepping import Attendant
from limner.train.company import Company
from limner.train.slots import Step
from limner.training_run import Ready, check_frozen, finish, largest_step, load_for_training, made_ready, try_drawing
from limner.watch import Watch

STOP = "stop"
"""A file of this name in a run's folder stops that run, and no other, after the step in hand."""


@dataclass(frozen=True)
class Waiting:
    """A run that waits for a seat: checked, and written down in its folder."""

    name: str
    folder: RunDir
    recipe: Recipe
    checked: Checked
    class_pictures: Path | None = None
    accept_dataset_change: bool = False


@dataclass(frozen=True)
class Ended:
    """How a run that trained with others ended."""

    name: str
    folder: RunDir | None
    """None where it was left out before it had one."""
    error: Exception | None = None
    """Why it has not come to its end; None where it has."""


@dataclass
class _Seat:
    """A run that trains."""

    waiting: Waiting
    run: Ready
    attendant: Attendant
    watch: Watch
    opened: ExitStack
    """What is open as long as it sits: its log, and the threads that fetch its pictures."""
    seconds: float = 0.0
    """Its share of the time."""
    is_over: bool = False
    error: Exception | None = None

    def close(self) -> None:
        """Close what is open, and note the training in the log as one phase."""
        self.opened.close()
        self.run.folder.append_log("phase", name="train", seconds=round(self.seconds, 3),
                                   peak_memory_gib=round(peak_memory_gib(), 3))  # fmt: skip


def train_together(waiting: Sequence[Waiting], *, slots: int, watch: Watch, board: Board) -> list[Ended]:
    """Load the base once and train all runs on it, `slots` at a time; return how each ended, in their order.

    What goes wrong with one is in its `Ended`, and the others train on. The first signal ends all after the step in
    hand, each with its checkpoint. All must have the base, precision, adapter's layers, objective and `accumulate` of
    the first.
    """
    first = next((one for one in waiting if one.recipe.draws_while_training or one.recipe.prior.active), waiting[0])
    started = time.perf_counter()
    family = load_for_training(first.recipe, watch, first.class_pictures)
    family.is_shared = True
    for one in waiting:
        share = round((time.perf_counter() - started) / len(waiting), 3)
        one.folder.append_log("phase", name="load", seconds=share, peak_memory_gib=round(peak_memory_gib(), 3))
    hall = _Hall(family, waiting, slots, watch, board)
    with noted_signals() as stopped:
        hall.train(stopped)
    check_frozen(family, family.identity)
    return [hall.ended[one.name] for one in waiting]


@dataclass
class _Hall:
    """The seats and the queue."""

    family: Family
    waiting: Sequence[Waiting]
    slots: int
    watch: Watch
    board: Board
    ended: dict[str, Ended] = field(default_factory=dict[str, Ended])
    seats: list[_Seat] = field(default_factory=list[_Seat])

    def __post_init__(self) -> None:
        self.queue = deque(self.waiting)
        self.schedule = self.family.schedule, dict(self.family.scheduler_config)
        self.begun_by = self.family.begun_by

    def train(self, stopped: list[int]) -> None:
        """Fill the seats and train until somebody leaves, again and again, until nobody is left."""
        while self._fill(stopped):
            company = Company([seat.run.training for seat in self.seats])
            try:
                if any(seat.run.training.index == 0 for seat in self.seats):
                    self._probe(company)
                with self.watch.phase("train"):
                    while not any(seat.is_over or seat.error for seat in self.seats):
                        self._step(company, stopped)
            finally:
                company.part()
            for seat in [seat for seat in self.seats if seat.is_over or seat.error]:
                self._leave(seat)
        for one in self.queue:
            self.ended[one.name] = Ended(one.name, one.folder, Interrupted("Stopped while it waited for a slot."))

    def _fill(self, stopped: list[int]) -> bool:
        """Let those who wait take the free seats, unless a signal has come; return whether anybody sits."""
        while self.queue and len(self.seats) < self.slots and not stopped:
            one = self.queue.popleft()
            self.board.wait([other.name for other in self.queue])
            try:
                seat = self._sit_down(one)
            except Exception as error:
                self.ended[one.name] = Ended(one.name, one.folder, error)
                continue
            self.seats.append(seat)
            with self._alone(seat), self._acting(seat):
                seat.is_over = seat.run.is_done or seat.attendant.begin()
            if seat.is_over or seat.error:
                self._leave(seat)
        return bool(self.seats)

    def _sit_down(self, one: Waiting) -> _Seat:
        """Cache what a run needs, make its training, and bring it to where the run is; it is off the base then."""
        watch, family = self.board.watch_of(one.name), self.family
        family.schedule, family.scheduler_config = self.schedule[0], dict(self.schedule[1])  # class pictures are so
        family.begun_by = self.begun_by
        with ExitStack() as opened:
            with family.whole():
                run = opened.enter_context(
                    made_ready(one.folder, one.recipe, family, one.checked, one.class_pictures, watch, ranks=Ranks(),
                               accept_dataset_change=one.accept_dataset_change)
                )  # fmt: skip
            run.training.adapter.detach()
            attendant = opened.enter_context(
                closing(Attendant(run.folder, run.recipe, family, run.training, run.plan, watch, held_out=run.held_out))
            )
            if any(seat.run.recipe.draws_while_training for seat in self.seats):
                family.begun_by = self.begun_by  # this run may have no use for it, and another has
            return _Seat(one, run, attendant, watch, opened.pop_all())

    def _probe(self, company: Company) -> None:
        """Take the largest steps of all at once, and draw where that is to be, before it counts."""
        with self.watch.phase("probe"):
            company.probe([largest_step(seat.run) for seat in self.seats])
            for seat in self.seats:
                with company.acting(seat.run.training):
                    try_drawing(seat.run)

    def _step(self, company: Company, stopped: list[int]) -> None:
        """Train all who sit by one step, and see to each of them."""
        for seat, step in zip(self.seats, company.step(), strict=True):
            with self._alone(seat):
                if isinstance(step, Guarded):
                    raise seat.attendant.last_good(step)
                if isinstance(step, UserError):
                    raise step
                if step:
                    self._attend(seat, step, stopped)

    def _attend(self, seat: _Seat, step: Step, stopped: list[int]) -> None:
        """Tell a run's step, and do what is due; at a signal, or where its folder says so, it stops."""
        attendant, asked = seat.attendant, seat.run.folder.path / STOP
        attendant.tell(step, slots=len(self.seats))
        why = "Ctrl-C or SIGTERM" if stopped else "the file `stop` in its folder" if asked.exists() else ""
        seat.seconds += step.seconds
        with self._acting(seat) if why or attendant.is_due else nullcontext():
            if why and not attendant.is_last:
                asked.unlink(missing_ok=True)
                attendant.stop(why)
            seat.is_over = attendant.see_to() or attendant.is_last

    @contextmanager
    def _acting(self, seat: _Seat) -> Iterator[None]:
        """Within this block the base is as one run has taught it; the time is that run's."""
        started = time.perf_counter()
        with Company.acting(seat.run.training):
            yield
        seat.seconds += time.perf_counter() - started

    @contextmanager
    def _alone(self, seat: _Seat) -> Iterator[None]:
        """Keep what goes wrong with one run to that run."""
        try:
            yield
        except Exception as error:
            seat.error = error

    def _leave(self, seat: _Seat) -> None:
        """Give the seat back, and save the result of a run that has come to its end."""
        self.seats.remove(seat)
        with self._alone(seat):
            if not seat.error:
                seat.attendant.finish()
            seat.close()
        if not seat.error:
            with self._alone(seat):
                finish(seat.run, seat.watch)
        self.board.leave(seat.waiting.name)
        self.ended[seat.waiting.name] = Ended(seat.waiting.name, seat.run.folder, seat.error)
