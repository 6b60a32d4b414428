"""What every adapter offers once it is attached to a base."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from limner.adapters.strength import Strength, as_strength
from limner.errors import UserError


@runtime_checkable
class Attachable(Protocol):
    """What an adapter may ask of the base that it attaches to; every family offers it."""

    placeholders: dict[str, range]
    """Words that stand for learned vectors, each with the numbers of its vectors."""

    @property
    def modules(self) -> dict[str, nn.Module]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def tokens(self, text: str) -> list[int]: ...


@dataclass(frozen=True)
class SlotSettings:
    """What may differ between the slots of one stacked adapter before training."""

    seed: int
    """Seed of the slot's initial weights."""
    rank: int | None = None
    """Rank of this slot; None takes the adapter's."""
    alpha: float | None = None
    """Alpha of this slot; None takes the adapter's."""
    words: Mapping[str, str] = field(default_factory=dict[str, str])
    """The subject's tokens, each with the word that describes it (its class noun): for adapters that learn words."""


@dataclass(frozen=True)
class Change:
    """What one group of an adapter (the UNet, a text encoder, new words) holds and how far it has come."""

    tensors: int
    parameters: int
    norm: float
    """Length of the change that the group makes to the base's weights, in the L2 norm; 0 is no effect."""


class Attached(ABC):
    """Parameters that learn, attached to a frozen base and removable without a trace.

    Rows of a batch belong to slots: with N slots the batch is laid out `[N, b]`, row block i for slot i.
    A parameter's group is the first part of its name: "unet", "text_encoder", "text_encoder_2" or "words".
    """

    slots: int
    learns_text: bool
    """True where the text encoder is changed, so that captions are encoded afresh in every step."""

    @abstractmethod
    def slot_parameters(self, slot: int) -> dict[str, Tensor]:
        """Return the slot's own parameters by name: views into the stacked storage whose `.grad` is set.

        An optimizer over these views trains this slot and no other.
        """

    @abstractmethod
    def zero_grad(self) -> None:
        """Set every gradient to zero in place."""

    @abstractmethod
    def state_dict(self, slot: int = 0) -> dict[str, Tensor]:
        """Return a copy of the slot's tensors under canonical names, ready for an exporter."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor], slot: int = 0) -> None:
        """Set the slot's tensors; keys or shapes that do not fit are a UserError that names them."""

    @abstractmethod
    def route(self, slot_of_block: Sequence[int] | None) -> None:
        """Say which slots the rows of the coming batches belong to: a slot for each of as many equal blocks of rows.

        A block may be a single row. None means that every slot has a block, in order.
        """

    @abstractmethod
    def changes(self, slot: int = 0) -> dict[str, Change]:
        """Return what each group of the slot holds and how far it has moved the base."""

    @abstractmethod
    def set_strength(self, strength: Strength | float) -> None:
        """Scale what the adapter adds, everywhere or in parts of the model: 0 is the base, 1 the adapter as trained."""

    @abstractmethod
    def enable(self, enabled: bool) -> None:
        """Switch the adapter on or off without detaching it."""

    @abstractmethod
    def detach(self) -> None:
        """Remove the adapter; the base is bit for bit what it was before."""

    @abstractmethod
    def merge(self, slot: int = 0) -> None:
        """Fold the slot into the base's weights (computed in float32, cast once) and stop adding it on the fly."""

    @abstractmethod
    def unmerge(self) -> None:
        """Undo `merge`: the base's weights are restored bit for bit."""

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within this block the model is the base."""
        self.enable(False)
        try:
            yield
        finally:
            self.enable(True)

    def trainable_parameters(self, slot: int = 0) -> int:
        """Return how many numbers the slot trains."""
        return sum(p.numel() for p in self.slot_parameters(slot).values())


class Stackable(Attached):
    """An adapter of which several, of one slot each, can train as the slots of one: on one base, in one batch.

    While they do, their weights and gradients lie in the memory of the common one, and it alone is on the base.
    """

    @abstractmethod
    def stacked(self, others: Sequence[Any]) -> Stackable:
        """Return the adapter whose slots this and `others` are from now on; none of them is on the base.

        All must be of this kind and have the same layers; ranks may differ.
        """

    @abstractmethod
    def leave(self) -> None:
        """Go on in memory of one's own: the weights stay as they are, the gradients are zero."""

    @abstractmethod
    def attach_again(self) -> None:
        """Put the adapter on the base again, from which `detach` removed it."""

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Within this block the adapter is on its base, where it was not before."""
        self.attach_again()
        try:
            yield
        finally:
            self.detach()


class Layered(Attached):
    """An adapter in layers: each has its strength, and all can be folded into the base's weights and out again."""

    def __init__(self, layers: Iterable[str]) -> None:
        self._enabled, self._strengths = True, dict.fromkeys(layers, 1.0)
        self._pristine: dict[Tensor, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.learns_text = any(name.startswith("text_encoder") for name in self._strengths)

    @abstractmethod
    def folded(self, slot: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each of the base's weights that the slot changes, and what it is with the change, in float32."""

    def set_strength(self, strength: Strength | float) -> None:
        given = as_strength(strength)
        self._strengths = (
            {name: given.of(name) for name in self._strengths}
            if given.parts
            else dict.fromkeys(self._strengths, given.whole)
        )

    def enable(self, enabled: bool) -> None:
        self._enabled = enabled

    @torch.no_grad()
    def merge(self, slot: int = 0) -> None:
        self.unmerge()
        for weight, value in self.folded(slot):
            self._pristine[weight] = weight.detach().clone()
            weight.copy_(value)
        self.enable(False)

    @torch.no_grad()
    def unmerge(self) -> None:
        if not self._pristine:
            return
        for weight, value in self._pristine.items():
            weight.copy_(value)
        self._pristine.clear()
        self.enable(True)

    def detach(self) -> None:
        self.unmerge()
        self.unhook()

    def unhook(self) -> None:
        """Take away what acts on the fly: of one that is folded in nothing is left but the weights."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def move_into(stack: Tensor, index: tuple[int | slice, ...], own: Tensor) -> None:
    """Copy a parameter into a part of a stacked one, and have it and its gradient lie there from now on."""
    if stack.grad is None:
        stack.grad = torch.zeros_like(stack)
    with torch.no_grad():
        stack[index] = own
    own.data, own.grad = stack.detach()[index], stack.grad[index]


@torch.no_grad()
def lay_in_rows(
    stacks: Sequence[Tensor],
) -> tuple[Float[Tensor, "slots width"], Float[Tensor, "slots width"]]:
    """Have stacked parameters lie side by side in one row of memory for each slot, and their gradients in another."""
    widths = [stack[0].numel() for stack in stacks]
    weights = stacks[0].new_empty(stacks[0].shape[0], sum(widths))
    grads = torch.zeros_like(weights)
    for stack, place, grad in zip(stacks, weights.split(widths, dim=1), grads.split(widths, dim=1), strict=True):
        place.view(stack.shape).copy_(stack)
        stack.data = place.view(stack.shape)
        stack.grad = grad.view(stack.shape)
    return weights, grads


def move_out(own: Tensor) -> None:
    """Have a parameter lie in memory of its own, with a gradient of zeros."""
    own.data = own.detach().clone(memory_format=torch.contiguous_format)
    own.grad = torch.zeros_like(own)


def require_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse a `state_dict` that has other names or shapes than the adapter's own tensors.

    Raises:
        UserError: says how many match and names the first that does not.
    """
    wrong = sorted(own.keys() ^ state.keys() | {n for n, t in own.items() if n in state and t.shape != state[n].shape})
    if wrong:
        matched = len(own) - len(own.keys() & set(wrong))
        raise UserError(
            f"the adapter does not fit: {matched} of {len(own)} tensors match (first that does not: {wrong[0]}).",
            "Use the base and the adapter settings that it was trained with.",
        )


def sum_by_group(parts: Iterable[tuple[str, Change]]) -> dict[str, Change]:
    """Return the changes of parts, each named as its parameter is, added up by group; norms add as squares."""
    found: dict[str, list[Change]] = {}
    for name, change in parts:
        found.setdefault(name.partition(".")[0], []).append(change)
    return {
        group: Change(
            tensors=sum(c.tensors for c in changes),
            parameters=sum(c.parameters for c in changes),
            norm=math.sqrt(sum(c.norm**2 for c in changes)),
        )
        for group, changes in found.items()
    }
