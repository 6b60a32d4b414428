"""Prepared examples: batches as a pure function of (seed, step)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limner.errors import UserError
from limner.pictures.cache import Cache
from limner.pictures.fit import Fit
from limner.prepare.check import Progress
from limner.prepare.order import Order, permutation, uniform
from limner.types import Batch, Conditioning

Shape = tuple[int, int]
"""Width and height of a bucket, in pixels."""


class Tensors:
    """Cache entries: kept in memory while they are small together, read from disk after that."""

    def __init__(self, cache: Cache, memory_bytes: int = 512 * 2**20) -> None:
        self._cache = cache
        self._kept: dict[str, Mapping[str, Tensor]] = {}
        self._room = memory_bytes
        self._lock = threading.Lock()

    def find(self, key: str) -> Mapping[str, Tensor] | None:
        """Return an entry, or None when it must be made."""
        if key in self._kept:
            return self._kept[key]
        entry = self._cache.load(key)
        if entry is not None:
            self._keep(key, entry)
        return entry

    def add(self, key: str, entry: Mapping[str, Tensor]) -> None:
        """Store a new entry."""
        self._cache.store(key, entry)
        self._keep(key, entry)

    def __getitem__(self, key: str) -> Mapping[str, Tensor]:
        entry = self.find(key)
        if entry is None:
            raise UserError(
                f"{self._cache.path(key)}: the cache entry is gone or damaged.", "Resume the run: it is made again."
            )
        return entry

    def _keep(self, key: str, entry: Mapping[str, Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in entry.values())
        with self._lock:
            if key not in self._kept and size <= self._room:
                self._room -= size
                self._kept[key] = entry


@dataclass(frozen=True)
class Row:
    """One example: what a row of a batch is drawn from."""

    name: str
    captions: tuple[str, ...]
    """The caption, in several orders of its tags when they are shuffled."""
    sha256: str
    """Of the picture file's bytes."""
    content: str
    """Hash of what decides the pixels: the file, its mask, colours behind it, mirroring."""
    size: Shape
    """Of the picture as it was given."""
    fits: Mapping[Shape, Fit]
    keys: Mapping[Shape, tuple[str, ...]]
    """Cache keys of the moments by shape: as it is and, with flips, mirrored."""
    weight: float = 1.0


class Prepared:
    """Examples in the cache. `batch` depends on (seed, step) only, so exact resume needs no state of it."""

    def __init__(
        self,
        *,
        rows: Sequence[Row],
        prior_rows: Sequence[Row],
        order: Order,
        tensors: Tensors,
        text_keys: Mapping[str, str],
        caption_dropout: float,
    ) -> None:
        self._rows = rows
        self._prior_rows = prior_rows
        self._order = order
        self.tensors = tensors
        self._text_keys = text_keys
        self._caption_dropout = caption_dropout
        self.notes: tuple[str, ...] = ()
        """Lines to print: what was reused and rebuilt."""
        self.encode_rest: Callable[[Progress | None], Sequence[str]] | None = None
        """Encodes the pictures that the first batches did not need, and returns lines to print; None when all are."""
        self.num_examples = len({row.name for row in rows})
        """How many pictures of the subject there are; class pictures and repeats not counted."""
        self.num_prior_examples = len(prior_rows)
        self.steps_per_epoch = order.steps_per_epoch()
        self.fingerprint = self._fingerprint()
        """SHA-256 of the data: pictures, captions, shapes, order. It does not depend on the encoders."""

    @property
    def files(self) -> dict[str, str]:
        """Return the SHA-256 of every picture by name; class pictures begin with "prior/"."""
        own = {row.name: row.sha256 for row in self._rows}
        return own | {f"prior/{row.name}": row.sha256 for row in self._prior_rows}

    def batch(self, step: int, *, seed: int) -> Batch:
        """Return the batch of a step: instance rows, then as many class rows when there is a prior."""
        chosen, shape, num_own = self._drawn(step, seed)
        captions = [self._caption(row, seed, step, place) for place, row in enumerate(chosen)]
        entries = [self.tensors[key] for key in _moments(chosen, shape, step, seed)]
        conditionings = [self._conditioning(c, row, shape) for c, row in zip(captions, chosen, strict=True)]
        return Batch(
            ids=tuple(row.name for row in chosen),
            moments=torch.stack([entry["moments"] for entry in entries]),
            conditioning=Conditioning.cat(conditionings),
            weight=torch.tensor([row.weight for row in chosen]),
            is_prior=tuple(place >= num_own for place in range(len(chosen))),
            mask=_masks(entries),
            captions=tuple(captions),
        )

    def moments_of(self, step: int, *, seed: int) -> list[str]:
        """Return the cache keys of the moments in the batch of a step, row by row."""
        chosen, shape, _ = self._drawn(step, seed)
        return _moments(chosen, shape, step, seed)

    def _drawn(self, step: int, seed: int) -> tuple[list[Row], Shape, int]:
        """Return the rows of a step's batch, their shape, and how many are of the subject; those come first."""
        indices, before = self._order.rows(step, seed)
        own = [self._rows[i] for i in indices]
        (shape,) = own[0].keys
        prior = [self._prior_row(before + i, seed) for i in range(len(indices) if self._prior_rows else 0)]
        return own + prior, shape, len(own)

    def largest_batch(self, batches: int, *, seed: int) -> int:
        """Return the number of the first batch with most pixels, of the first epoch and the first `batches`."""
        if self._order.has_one_bucket:
            return 0

        def pixels(number: int) -> int:
            indices, _ = self._order.rows(number, seed)
            ((width, height),) = self._rows[indices[0]].keys
            return len(indices) * width * height

        return max(range(min(batches, self.steps_per_epoch)), key=pixels)

    def _caption(self, row: Row, seed: int, step: int, place: int) -> str:
        if uniform(seed, "dropout", step, place) < self._caption_dropout:
            return ""
        return row.captions[int(uniform(seed, "tags", step, place) * len(row.captions))]

    def _prior_row(self, place: int, seed: int) -> Row:
        turn, index = divmod(place, len(self._prior_rows))
        return self._prior_rows[permutation(len(self._prior_rows), seed, "prior", turn)[index]]

    def _conditioning(self, caption: str, row: Row, shape: Shape) -> Conditioning:
        entry = self.tensors[self._text_keys[caption]]
        time_ids = entry.get("time_ids")
        if time_ids is not None:
            time_ids = _own_time_ids(time_ids, row.size, row.fits[shape])
        return Conditioning(entry["hidden"], entry.get("pooled"), time_ids)

    def _fingerprint(self) -> str:
        def facts(row: Row) -> list[object]:
            return [row.name, row.captions, row.weight, row.content, sorted(map(repr, row.fits.values()))]

        everything = {
            "rows": [facts(row) for row in self._rows],
            "prior": [facts(row) for row in self._prior_rows],
            "groups": [[group.members, group.per_epoch] for group in self._order.groups],
            "batch": self._order.batch,
            "caption_dropout": self._caption_dropout,
        }
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _moments(rows: Sequence[Row], shape: Shape, step: int, seed: int) -> list[str]:
    """Return the cache keys of the moments of a batch's rows, each as it is or mirrored."""
    mirrored = [uniform(seed, "flip", step, place) < 0.5 for place in range(len(rows))]
    return [row.keys[shape][-1 if flip else 0] for row, flip in zip(rows, mirrored, strict=True)]


def _masks(entries: Sequence[Mapping[str, Tensor]]) -> Float[Tensor, "batch 1 height width"] | None:
    """Return the rows' masks, ones for those without; None when no row has one."""
    masks = [entry.get("mask") for entry in entries]
    if all(mask is None for mask in masks):
        return None
    height, width = entries[0]["moments"].shape[-2:]
    return torch.stack([torch.ones(1, height, width) if mask is None else mask for mask in masks])


def _own_time_ids(time_ids: Tensor, size: Shape, fit: Fit) -> Tensor:
    """Return SDXL's size conditioning with the picture's own values: size, crop and, for the base, target.

    Columns: original height and width, top and left of the crop, then target height and width (the base) or
    the aesthetic score (the refiner), which is kept. arXiv:2307.01952 section 2.2.
    """
    own = [size[1], size[0], fit.top, fit.left]
    if time_ids.shape[1] == 6:
        own += [fit.size[1], fit.size[0]]
    time_ids = time_ids.clone()
    time_ids[:, : len(own)] = torch.tensor(own, dtype=time_ids.dtype)
    return time_ids
