"""The ModelSpec fields of a file's header, which model browsers and web UIs show (ModelSpec 1.0.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limner.families.recognise import FAMILIES

HEADER = "limner"
"""Key of our own JSON in a file's header."""
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""ModelSpec's name of each prediction type."""
ORIGINAL = "https://github.com/Stability-AI/generative-models"
"""The implementation whose names a single-file checkpoint and an embedding carry."""


def modelspec(about: Mapping[str, Any], *, adapter: str = "", implementation: str = ORIGINAL) -> dict[str, str]:
    """Return the `modelspec.` fields that `about` (the base's facts, token, class_noun) has an answer to.

    `adapter` is "" for a whole model, "lora" or "textual-inversion". There is no date: equal weights give equal bytes.
    """
    token, noun, side = about.get("token"), about.get("class_noun"), about.get("resolution_px")
    known = FAMILIES.get(about.get("family", ""))
    architecture = known.modelspec if known else None
    fields = {
        "architecture": f"{architecture}/{adapter}".rstrip("/") if architecture else None,
        "implementation": implementation,
        "prediction_type": PREDICTIONS.get(about.get("prediction_type", "")),
        "resolution": f"{side}x{side}" if side else None,
        "sai_model_spec": "1.0.1",
        "title": " ".join(word for word in (token, noun) if word) or "Limner",
        "trigger_phrase": token,
        "usage_hint": about.get("usage_hint"),
    }
    return {f"modelspec.{name}": value for name, value in fields.items() if value}
