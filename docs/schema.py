"""Write the JSON schemas of the files that evaluate leaves into docs/schema; run it after a field changed."""

from __future__ import annotations

import json
from pathlib import Path

from limner.metrics.ladder import Ladder
from limner.metrics.scores import Scores
from limner.metrics.study import Study
from limner.metrics.sweep import Sweep

SCHEMAS = {"scores": Scores, "study": Study, "ladder": Ladder, "sweep": Sweep}
FOLDER = Path(__file__).parent / "schema"


def schema(name: str) -> str:
    """Return the JSON schema of a file by its name."""
    return json.dumps(SCHEMAS[name].model_json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name in SCHEMAS:
        (FOLDER / f"{name}.json").write_text(schema(name), encoding="utf-8")
