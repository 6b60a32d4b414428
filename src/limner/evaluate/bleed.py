"""How like each subject the pictures of each trigger are, with all adapters at work and with its own alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.errors import UserError
from limner.evaluate.images import read_pictures
from limner.evaluate.look import Progress, look
from limner.evaluate.statistics import holm, interval, interval_p
from limner.metrics.bleed import Bleed, Cell
from limner.metrics.encoder import ImageEncoder
from limner.metrics.similarity import mean_cosine
from limner.rundir import read_json
from limner.seeds import seed_of

BATCH = 16


@dataclass(frozen=True)
class Sitter:
    """One subject: its real pictures, and what was drawn for its trigger."""

    name: str
    words: str
    """What the prompts say: token and class noun."""
    pictures: Path
    """A folder with a manifest, as `alone` and `together`."""
    alone: Path
    together: Path


def bleed(base: str, sitters: Sequence[Sitter], encoder: ImageEncoder, *, progress: Progress) -> Bleed:
    """Return the similarity of each trigger's pictures to each subject's, with intervals over prompts.

    Raises:
        UserError: a subject has no pictures, or a trigger's pictures alone and together are of other prompts.
    """
    real = {one.name: read_pictures(one.pictures) for one in sitters}
    drawn = {(one.name, how): read_pictures(getattr(one, how)) for one in sitters for how in ("alone", "together")}
    for one in sitters:
        if not real[one.name]:
            raise UserError(f"{one.pictures}: holds no pictures of {one.name}.", "Train the run again.")
    paths = [path for group in (*real.values(), *drawn.values()) for path in group]
    seen = look(encoder, paths, [], batch=BATCH, progress=progress)
    cells: list[Cell] = []
    for trigger in sitters:
        prompts = [f"{row['prompt_index']}" for row in read_json(trigger.together / "manifest.json")["images"]]
        for subject in sitters:
            features = seen.rows(real[subject.name])
            values = {how: mean_cosine(seen.rows(drawn[trigger.name, how]), features).numpy()
                      for how in ("alone", "together")}  # fmt: skip
            seed = seed_of("bleed", trigger.name, subject.name)
            intervals = {how: interval(value, prompts, seed=seed) for how, value in values.items()}
            change = interval(values["together"] - values["alone"], prompts, seed=seed)
            alone, together = intervals["alone"], intervals["together"]
            cells.append(
                Cell(trigger=trigger.name, subject=subject.name, together=together, alone=alone, change=change)
            )
    pairs = [cell for cell in cells if cell.trigger != cell.subject]
    corrected = dict(zip(map(id, pairs), holm([interval_p(cell.change) for cell in pairs]), strict=True))
    cells = [cell.model_copy(update={"p": corrected.get(id(cell))}) for cell in cells]
    return Bleed(
        names=tuple(one.name for one in sitters), tokens={one.name: one.words for one in sitters}, base=base,
        encoder=encoder.name, about=encoder.about, cells=tuple(cells),
    )  # fmt: skip
