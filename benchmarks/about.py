"""What a result means nothing without."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

from limner import machine


def about() -> dict[str, Any]:
    """Return date, command line, machine and versions of the benchmark that runs."""
    module = sys.modules["__main__"].__spec__
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m", module.name if module else sys.argv[0], *sys.argv[1:]]),
        "machine": machine.hardware(),
        "versions": machine.versions(),
    }
