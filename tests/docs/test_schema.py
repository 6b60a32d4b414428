"""The schemas in the documentation are those of the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["scores", "study", "ladder"])
def test_schemas_are_up_to_date(root: Path, name: str) -> None:
    spec = importlib.util.spec_from_file_location("schema", root / "docs" / "schema.py")
    assert spec
    assert spec.loader
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    found = (root / "docs" / "schema" / f"{name}.json").read_text(encoding="utf-8")
    assert found == written.schema(name), "run: python docs/schema.py"
