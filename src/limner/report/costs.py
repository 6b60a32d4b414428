"""What the run cost: counted parameters, bytes, seconds and memory, in words that a person reads."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from limner.report.material import Material


@dataclass(frozen=True)
class Cost:
    """One figure with its unit and what it is."""

    figure: str
    what: str
    detail: str = ""


@dataclass(frozen=True)
class Phase:
    """One phase of the run."""

    name: str
    seconds: float
    time: str
    share: float
    """Of the longest phase, in per cent."""
    memory: str


def costs(material: Material) -> list[Cost]:
    """Return the figures that the run's folder can tell."""
    found: list[Cost] = []
    adapter = material.provenance.get("adapter") or {}
    trained, base = adapter.get("trainable_parameters"), adapter.get("base_parameters")
    if trained and base:
        detail = f"{trained:,} against the base's {base:,}, counted in this run"
        found.append(Cost(f"{base / trained:,.0f}×", "fewer trained parameters than the base has", detail))
    if adapter.get("file_bytes"):
        found.append(Cost(in_bytes(float(adapter["file_bytes"])), "adapter file", material.run.adapter.name))
    training = [p for p in material.phases if p["name"] == "train"]
    if training:
        seconds = math.fsum(p["seconds"] for p in training)
        steps = [s["seconds"] for s in material.steps if s.get("seconds")]
        detail = f"{len(material.steps):,} steps"
        detail += f", {statistics.median(steps):.2f} s each (median)" if steps else ""
        found.append(Cost(in_time(seconds), "training", detail))
    if material.phases:
        peak = max(p.get("peak_memory_gib") or 0 for p in material.phases)
        total = in_time(math.fsum(p["seconds"] for p in material.phases))
        found.append(Cost(f"{peak:.1f} GiB", "memory at most", f"of the whole process; {total} from start to end"))
    return found


def in_one_line(material: Material) -> str:
    """Return training time, parameters and file size as a sentence, as far as the run's folder can tell."""
    adapter = material.provenance.get("adapter") or {}
    trained, base = adapter.get("trainable_parameters"), adapter.get("base_parameters")
    seconds = math.fsum(p["seconds"] for p in material.phases if p["name"] == "train")
    parts = [f"{in_time(seconds)} of training"] if seconds else []
    if trained and base:
        parts.append(f"{trained:,} trained parameters, {base / trained:,.0f} times fewer than the base has")
    if adapter.get("file_bytes"):
        parts.append(f"a file of {in_bytes(float(adapter['file_bytes']))}")
    return f"It took {'; '.join(parts)}." if parts else ""


def phases(material: Material) -> list[Phase]:
    """Return the run's phases in the order of their first start, repeated ones added up."""
    order = list(dict.fromkeys(p["name"] for p in material.phases))
    seconds = {name: math.fsum(p["seconds"] for p in material.phases if p["name"] == name) for name in order}
    memory = {name: max(p.get("peak_memory_gib") or 0 for p in material.phases if p["name"] == name) for name in order}
    longest = max(seconds.values(), default=1) or 1
    return [
        Phase(name, s, in_time(s), 100 * s / longest, f"{memory[name]:.2f} GiB" if memory[name] else "")
        for name, s in seconds.items()
    ]


def in_time(seconds: float) -> str:
    """Return a duration as a person says it."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def in_bytes(count: float) -> str:
    """Return a file size in decimal units, as file managers show it."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
