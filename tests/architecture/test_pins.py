"""The pins of the development install agree with what the package asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """Return pyproject.toml's section `project`."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    """Return package -> version of constraints.txt."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pinned}


def test_every_requirement_is_pinned_within_its_bounds(project: dict[str, Any], pins: dict[str, str]) -> None:
    extras = project["optional-dependencies"]
    (own,) = [Requirement(text) for text in extras["dev"] if text.startswith("limner[")]
    wanted = [*project["dependencies"], *extras["dev"], *(text for name in own.extras for text in extras[name])]
    for asked in map(Requirement, wanted):
        if asked.name == "limner":
            continue
        version = pins.get(canonicalize_name(asked.name))
        assert version, f"{asked.name} has no pin in constraints.txt"
        assert asked.specifier.contains(version), f"{asked} does not allow the pinned {version}"


def test_every_requirement_has_a_lower_and_an_upper_bound(project: dict[str, Any]) -> None:
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for asked in (Requirement(text) for texts in lists for text in texts):
        signs = {bound.operator for bound in asked.specifier}
        assert asked.name == "limner" or signs in ({">=", "<"}, {"=="}), f"{asked}: give it a lower and an upper bound"


def test_nothing_needs_torchvision(pins: dict[str, str]) -> None:
    assert not {"torchvision", "torchaudio"} & set(pins)


def test_the_license_is_whole(root: Path, project: dict[str, Any]) -> None:
    text = (root / "LICENSE").read_text(encoding="utf-8")
    assert project["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
