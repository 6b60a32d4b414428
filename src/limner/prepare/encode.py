"""From checked pictures to cached moments and text embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from limner.errors import UserError
from limner.families.family import Family
from limner.pictures.cache import Cache, key_of
from limner.pictures.decode import BadPicture, decode_bytes, read_file
from limner.pictures.fit import Fit, fit_to
from limner.pictures.spec import Pictures
from limner.prepare.ahead import work_ahead
from limner.prepare.check import Checked, Example, Progress
from limner.prepare.prepared import Prepared, Row, Tensors


@dataclass(frozen=True)
class _Variant:
    """One cache entry of one picture."""

    key: str
    fit: Fit
    flip: bool


def to_pixels(image: Image.Image) -> Float[Tensor, "1 3 height width"]:
    """Return an RGB picture as a batch of one in [-1, 1]."""
    array = np.array(image, dtype=np.float32)
    return torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0).div_(127.5).sub_(1)


def prepare(
    checked: Checked,
    family: Family,
    *,
    spec: Pictures,
    cache: Path,
    batch: int,
    prior: Checked | None = None,
    prior_weight: float = 1.0,
    progress: Progress | None = None,
) -> Prepared:
    """Encode what the cache does not hold yet and return the examples, ready to be drawn in batches.

    Moments and text embeddings are encoded one picture and one caption at a time, so that an entry depends on
    its key alone and never on what happened to be rebuilt beside it. Class pictures are cropped to every shape
    that the subject's pictures have, so that each step finds class pictures of its own shape.
    """
    store = Cache(cache)
    class_examples = () if prior is None else prior.examples
    captions = {example.caption for example in (*checked.examples, *class_examples)}
    captions |= {""} if spec.caption_dropout else set()
    encoder = _Encoder(family, spec, store, captions)
    shapes = checked.shapes
    rows = [encoder.row(example, {example.fit.size: example.fit}) for example in checked.examples]
    prior_rows = [
        replace(encoder.row(example, {shape: fit_to(example.size, shape) for shape in shapes}), weight=prior_weight)
        for example in class_examples
    ]
    every_row = rows + prior_rows
    tensors = Tensors(store)
    counts = encoder.encode_missing(
        [*checked.examples, *class_examples], every_row, sorted(captions), tensors, progress
    )
    return Prepared(
        rows=rows,
        prior_rows=prior_rows,
        order=checked.order(batch),
        tensors=tensors,
        text_keys={caption: encoder.text_key(caption) for caption in captions},
        caption_dropout=spec.caption_dropout,
        notes=(counts,),
    )


class _Encoder:
    """Makes cache keys and entries with one family's encoders."""

    def __init__(self, family: Family, spec: Pictures, store: Cache, captions: Collection[str]) -> None:
        self.family = family
        self.longest = max(captions, key=family.token_count)
        self.windows = max(1, -(-family.token_count(self.longest) // family.max_tokens))
        self.spec = spec
        self.store = store
        self.vae = f"{family.identity['vae']} {next(family.vae.parameters()).dtype}"
        self.text = f"{family.identity['text']} {family.dtype}"

    def text_key(self, caption: str) -> str:
        return key_of(kind="text", caption=caption, windows=self.windows, encoder=self.text)

    def _encode_text(self, caption: str) -> dict[str, Tensor]:
        """Encode one caption to as many windows as the longest of the set has, so that rows can be stacked."""
        company = [self.longest] if self.windows > 1 else []
        conditioning = self.family.encode_text([caption, *company])
        fields = {"hidden": conditioning.hidden, "pooled": conditioning.pooled, "time_ids": conditioning.time_ids}
        return {name: value[:1].float().cpu() for name, value in fields.items() if value is not None}

    def row(self, example: Example, fits: dict[tuple[int, int], Fit]) -> Row:
        """Return the row of an example, with the keys of its entries for each shape."""
        flips = (False, True) if self.spec.flip else (False,)
        keys = {shape: tuple(self._moments_key(example, fit, flip) for flip in flips) for shape, fit in fits.items()}
        return Row(example.name, example.caption, example.sha256, example.size, fits, keys)

    def _moments_key(self, example: Example, fit: Fit, flip: bool) -> str:
        transform = [list(fit.resized), fit.left, fit.top, list(fit.size), flip, self.spec.alpha]
        return key_of(kind="moments", bytes=example.sha256, transform=transform, encoder=self.vae)

    def encode_missing(
        self,
        examples: list[Example],
        rows: list[Row],
        captions: list[str],
        tensors: Tensors,
        progress: Progress | None,
    ) -> str:
        """Encode what is missing and say how much was reused and rebuilt."""
        jobs = [(example, self._missing(row, tensors)) for example, row in zip(examples, rows, strict=True)]
        texts = [caption for caption in captions if tensors.find(self.text_key(caption)) is None]
        entries = {key for row in rows for keys in row.keys.values() for key in keys}
        missing = {variant.key for _, variants in jobs for variant in variants}
        done, total = 0, len(missing) + len(texts)
        for caption in texts:
            tensors.add(self.text_key(caption), self._encode_text(caption))
            done += 1
            if progress:
                progress(done, total)
        for key, moments in self._moments([(example, variants) for example, variants in jobs if variants]):
            tensors.add(key, {"moments": moments})
            done += 1
            if progress:
                progress(done, total)
        damaged = f", {len(self.store.damaged)} of them damaged" if self.store.damaged else ""
        return f"cache: {len(entries) - len(missing)} reused, {len(missing)} rebuilt{damaged}"

    def _missing(self, row: Row, tensors: Tensors) -> list[_Variant]:
        return [
            _Variant(key, row.fits[shape], flip=bool(number))
            for shape, keys in row.keys.items()
            for number, key in enumerate(keys)
            if tensors.find(key) is None
        ]

    def _moments(self, jobs: list[tuple[Example, list[_Variant]]]) -> Iterator[tuple[str, Tensor]]:
        """Yield the moments of every missing entry; pictures are decoded ahead in threads."""

        def decode(job: tuple[Example, list[_Variant]]) -> list[Float[Tensor, "1 3 height width"]]:
            example, variants = job
            image = self._reread(example)
            pictures = [variant.fit.apply(image) for variant in variants]
            turned = [ImageOps.mirror(p) if v.flip else p for p, v in zip(pictures, variants, strict=True)]
            return [to_pixels(picture) for picture in turned]

        for (example, variants), pixels in zip(jobs, work_ahead(decode, jobs), strict=True):
            for variant, one in zip(variants, pixels, strict=True):
                moments = self.family.encode_pixels(one)[0]
                if not moments.isfinite().all():
                    raise UserError(
                        f"{example.path}: its latents are not finite in {self.vae.split()[-1]}.",
                        "Set precision=fp32, or remove the picture.",
                    )
                yield variant.key, moments

    def _reread(self, example: Example) -> Image.Image:
        try:
            data = read_file(example.path)
            if hashlib.sha256(data).hexdigest() != example.sha256:
                raise BadPicture("changed while the run was being prepared")
            return decode_bytes(data, background=self.spec.alpha, max_megapixels=self.spec.max_megapixels).rgb
        except BadPicture as bad:
            raise UserError(f"{example.path}: {bad}.", "Start the run again.") from bad
