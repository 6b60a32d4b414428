"""From checked pictures to cached moments and text embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from limner.errors import UserError
from limner.families.family import Family, rows_together
from limner.files import Need, require_room
from limner.machine import freed_for_reuse
from limner.pictures.cache import ROOM, Cache, key_of
from limner.pictures.captions import tags_shuffled
from limner.pictures.decode import reduction
from limner.pictures.fit import Fit, Size, fit_to
from limner.pictures.spec import Pictures
from limner.prepare.ahead import work_ahead
from limner.prepare.check import Checked, Example, Progress
from limner.prepare.look import Seen, look_again
from limner.prepare.memory import recall, remember, remembered_file, tell_work
from limner.prepare.prepared import Prepared, Row, Tensors
from limner.prepare.subjects import spec_of


@dataclass(frozen=True)
class _Ready:
    """A decoded picture, ready to be encoded."""

    key: str
    name: str
    pixels: Float[Tensor, "1 3 height width"]
    mask: Float[Tensor, "1 rows columns"] | None


@dataclass(frozen=True)
class _Variant:
    """One cache entry of one picture."""

    key: str
    fit: Fit
    flip: bool

    def apply(self, image: Image.Image) -> Image.Image:
        """Return the picture (or its mask) resized, cropped and, perhaps, mirrored."""
        fitted = self.fit.apply(image)
        return ImageOps.mirror(fitted) if self.flip else fitted


def to_pixels(image: Image.Image) -> Float[Tensor, "1 3 height width"]:
    """Return an RGB picture as a batch of one in [-1, 1]."""
    array = np.array(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).div_(127.5).sub_(1)


def to_weights(mask: Image.Image, pixels_per_latent: int) -> Float[Tensor, "1 height width"]:
    """Return a mask (mode L) as the weight of each latent in [0, 1]: the mean of the pixels behind it."""
    size = (mask.width // pixels_per_latent, mask.height // pixels_per_latent)
    array = np.array(mask.resize(size, Image.Resampling.BOX), dtype=np.float32)
    return torch.from_numpy(array).unsqueeze(0).div_(255)


@dataclass(frozen=True)
class Portion:
    """What is encoded at once."""

    number: int = 0
    of: int = 1
    """Of so many shares the one of that number: every `of`-th picture and caption."""
    batches: int | None = None
    """Pictures of so many first batches; None for all."""
    seed: int = 0
    """That of the batches."""


def prepare(
    checked: Checked,
    family: Family,
    *,
    spec: Pictures,
    cache: Path,
    batch: int,
    prior: Checked | None = None,
    portion: Portion | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Encode what the cache does not hold yet and return the examples, ready to be drawn in batches.

    With a `portion` less is encoded than is missing: n processes that have each done their share find everything in the
    cache, and what the first batches do not need, `encode_rest` of what is returned does.

    Pictures are encoded in batches of a size that depends on their shape alone, captions one at a time, so that an
    entry depends on its key alone and never on what happened to be rebuilt beside it. Class pictures are cropped to
    every shape that the subject's pictures have, so that each step finds class pictures of its own shape.
    """
    store = Cache(cache)
    class_examples, prior_weight = ((), 1.0) if prior is None else (prior.examples, prior.weight)
    captions = [_captions_of(e, spec) for e in checked.examples]
    texts = {text for orders in captions for text in orders} | {e.caption for e in class_examples}
    texts |= {""} if spec.caption_dropout else set()
    encoder = _Encoder(family, spec, texts)
    rows = [encoder.row(e, c, {e.fit.size: e.fit}) for e, c in zip(checked.examples, captions, strict=True)]
    prior_rows = [
        replace(encoder.row(e, (e.caption,), {s: fit_to(e.size, s) for s in checked.shapes}), weight=prior_weight)
        for e in class_examples
    ]
    tensors = Tensors(store)
    jobs = [_Job(r.name, e, encoder.missing(r, tensors)) for e, r in zip(checked.examples, rows, strict=True)]
    for example, row in zip(class_examples, prior_rows, strict=True):
        jobs.append(_Job(f"prior/{row.name}", example, encoder.missing(row, tensors)))
    portion = portion or Portion()
    own = slice(portion.number, None, portion.of)
    missing_texts = [text for text in sorted(texts)[own] if tensors.find(encoder.text_key(text)) is None]
    size = encoder.bytes_of([variant for job in jobs[own] for variant in job.variants], len(missing_texts))
    require_room([Need(cache, size, "moments and captions")], str(cache), ROOM)
    prepared = Prepared(
        rows=rows,
        prior_rows=prior_rows,
        order=checked.order(batch),
        tensors=tensors,
        text_keys={text: encoder.text_key(text) for text in texts},
        caption_dropout=spec.caption_dropout,
    )
    now, later = _parted([job for job in jobs[own] if job.variants], prepared, portion)
    with freed_for_reuse():
        _encode(encoder, now, missing_texts, tensors, progress)
    prepared.notes = (_tell(store, jobs), *encoder.notes, *_long_captions(family, checked.examples))
    prepared.encode_rest = _encoding(encoder, later, prepared) if later else None
    return prepared


def _captions_of(example: Example, spec: Pictures) -> tuple[str, ...]:
    """Return what a picture may be called: its tags in several orders, or for a template's caption all templates."""
    own = spec_of(example.picture.subject, spec) if example.picture.subject else spec
    if spec.templates and example.caption == own.fill(own.caption):
        return (example.caption, *(own.fill(template) for template in spec.templates))
    return tags_shuffled(example.caption, spec.shuffle_tags, spec.keep_first)


@dataclass(frozen=True)
class _Job:
    """What is missing of one picture."""

    name: str
    example: Example
    variants: list[_Variant]


def _parted(jobs: Sequence[_Job], prepared: Prepared, portion: Portion) -> tuple[list[_Job], list[_Job]]:
    """Return the pictures that the portion's batches need, and the others."""
    if portion.batches is None:
        return list(jobs), []
    numbers = range(portion.batches)
    wanted = {key for number in numbers for key in prepared.moments_of(number, seed=portion.seed)}
    now, later = list[_Job](), list[_Job]()
    for job in jobs:
        (later if wanted.isdisjoint(variant.key for variant in job.variants) else now).append(job)
    return now, later


def _encoding(encoder: _Encoder, jobs: list[_Job], prepared: Prepared) -> Callable[[Progress | None], list[str]]:
    """Return what encodes pictures later; they are all then."""

    def encode_rest(progress: Progress | None) -> list[str]:
        encoder.notes.clear()
        _encode(encoder, jobs, [], prepared.tensors, progress)
        prepared.encode_rest = None
        return encoder.notes

    return encode_rest


def _encode(encoder: _Encoder, jobs: list[_Job], texts: list[str], tensors: Tensors, progress: Progress | None) -> None:
    """Encode what is missing and store it, one entry after the other."""
    done, total = 0, len(texts) + sum(len(job.variants) for job in jobs)
    for text in texts:
        tensors.add(encoder.text_key(text), encoder.encode_text(text))
        done += 1
        if progress:
            progress(done, total)
    for key, entry in encoder.entries(jobs):
        tensors.add(key, entry)
        done += 1
        if progress:
            progress(done, total)


def _tell(store: Cache, jobs: list[_Job]) -> str:
    """Return the line about what was reused and rebuilt, and remember the set for the next time."""
    present = {job.name: job.example.sha256 for job in jobs}
    file = remembered_file(store.root, {job.example.path.parent for job in jobs})
    rebuilt = list(dict.fromkeys(job.name for job in jobs if job.variants))
    line = tell_work(recall(file), present, rebuilt, reused=len(present) - len(rebuilt), damaged=len(store.damaged))
    remember(file, present)
    return line


def _long_captions(family: Family, examples: Sequence[Example]) -> list[str]:
    """Say which captions do not fit into one window of the text encoder."""
    counts = {example.name: family.token_count(example.caption) for example in examples}
    long = [name for name, count in counts.items() if count > family.max_tokens]
    if not long:
        return []
    first = f"{long[0]}, {counts[long[0]]} tokens"
    return [
        f"captions: {len(long)} longer than {family.max_tokens} tokens (first: {first}); "
        f"they are encoded in windows of {family.max_tokens}, nothing is cut"
    ]


class _Encoder:
    """Makes cache keys and entries with one family's encoders."""

    def __init__(self, family: Family, spec: Pictures, texts: Collection[str]) -> None:
        self.family = family
        self.longest = max(texts, key=family.token_count)
        self.windows = max(1, -(-family.token_count(self.longest) // family.max_tokens))
        self.spec = spec
        self.notes: list[str] = []
        place = family.device.type  # another kind of processor rounds differently
        self.vae = f"{family.identity['vae']} {place} {next(family.vae.parameters()).dtype}"
        self.text = f"{family.identity['text']} {place} {family.dtype}"

    def text_key(self, caption: str) -> str:
        return key_of("text", caption=caption, windows=self.windows, encoder=self.text)

    def encode_text(self, caption: str) -> dict[str, Tensor]:
        """Encode one caption to as many windows as the longest of the set has, so that rows can be stacked."""
        company = [self.longest] if self.windows > 1 else []
        conditioning = self.family.encode_text([caption, *company])
        fields = {"hidden": conditioning.hidden, "pooled": conditioning.pooled, "time_ids": conditioning.time_ids}
        return {name: value[:1].float().cpu() for name, value in fields.items() if value is not None}

    def row(self, example: Example, captions: tuple[str, ...], fits: dict[Size, Fit]) -> Row:
        """Return the row of an example, with the keys of its entries for each shape."""
        flips = (False, True) if self.spec.flip else (False,)
        keys = {shape: tuple(self._moments_key(example, fit, flip) for flip in flips) for shape, fit in fits.items()}
        content = key_of("content", **self._content(example), flip=self.spec.flip)
        return Row(example.name, captions, example.sha256, content, example.size, fits, keys)

    def _content(self, example: Example) -> dict[str, object]:
        """Return what decides the pixels of a picture and of its mask, before they are resized."""
        mask = [example.mask_sha256, self.spec.alpha == "mask"]
        return {"bytes": example.sha256, "mask": mask, "background": self.spec.background}

    def missing(self, row: Row, tensors: Tensors) -> list[_Variant]:
        """Return what the cache lacks of a row."""
        return [
            _Variant(key, row.fits[shape], flip=bool(number))
            for shape, keys in row.keys.items()
            for number, key in enumerate(keys)
            if tensors.find(key) is None
        ]

    def bytes_of(self, variants: Sequence[_Variant], texts: int) -> int:
        """Return what entries take on the disk: mean and deviation of every latent, and captions, in float32."""
        vae, cell = self.family.vae.config, self.family.pixels_per_latent
        latents = sum(math.prod(side // cell for side in variant.fit.size) for variant in variants)
        width = self.family.unet.config.cross_attention_dim
        return 4 * (2 * vae.latent_channels * latents + texts * self.windows * (self.family.max_tokens + 2) * width)

    def _moments_key(self, example: Example, fit: Fit, flip: bool) -> str:
        transform = [list(fit.resized), fit.left, fit.top, list(fit.size), flip]
        return key_of("moments", **self._content(example), transform=transform, encoder=self.vae)

    def entries(self, jobs: list[_Job]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield every missing entry: moments, and the mask where there is one. Pictures are decoded ahead."""

        def decode(job: _Job) -> list[_Ready]:
            example, cell = job.example, self.family.pixels_per_latent
            decoded: dict[int, Seen] = {}
            ready: list[_Ready] = []
            for variant in job.variants:
                least = variant.fit.shortest_px
                factor = reduction(example.size, least)
                if factor not in decoded:
                    decoded[factor] = look_again(
                        example.picture, self.spec, sha256=example.sha256, mask_sha256=example.mask_sha256,
                        shortest_px=least,
                    )  # fmt: skip
                seen = decoded[factor]
                mask = None if seen.mask is None else to_weights(variant.apply(seen.mask), cell)
                ready.append(_Ready(variant.key, example.name, to_pixels(variant.apply(seen.rgb)), mask))
            return ready

        waiting: dict[Size, list[_Ready]] = {}
        for job, decoded in zip(jobs, work_ahead(decode, jobs), strict=True):
            for variant, ready in zip(job.variants, decoded, strict=True):
                alike = waiting.setdefault(variant.fit.size, [])
                alike.append(ready)
                if len(alike) == rows_together(variant.fit.size):
                    yield from self._encode_together(alike)
                    alike.clear()
        for alike in waiting.values():
            if alike:
                yield from self._encode_together(alike)

    def _encode_together(self, alike: list[_Ready]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Encode pictures of one shape; the batch is filled up, so that its size is always the same."""
        pixels = torch.cat([ready.pixels for ready in alike])
        filled = pixels[torch.arange(rows_together((pixels.shape[3], pixels.shape[2]))) % len(alike)]
        together = self.family.encode_pixels(filled)
        broken = [ready.name for ready, moments in zip(alike, together, strict=False) if not moments.isfinite().all()]
        if broken and self.family.vae.dtype != torch.float32:
            dtype = str(self.family.vae.dtype).removeprefix("torch.")
            with self.family.precise_vae():
                together = self.family.encode_pixels(filled)
            self.notes.append(f"latents of {', '.join(broken)} are not finite in {dtype}; encoded again in float32")
        for ready, moments in zip(alike, together, strict=False):
            if not moments.isfinite().all():
                raise UserError(
                    f"{ready.name}: its latents are not finite, even in float32.",
                    "Remove the picture; if others fail as well, the base's VAE is damaged: use another base.",
                )
            entry = {"moments": moments.clone()}
            yield ready.key, entry if ready.mask is None else entry | {"mask": ready.mask}
