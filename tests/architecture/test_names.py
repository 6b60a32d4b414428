"""What the house does without: `utils.py`, `misc.py`, `Base*`, and files that name a family and a method at once."""

from __future__ import annotations

import ast

from tests.architecture.sources import sources

FAMILIES = ("sd15", "sd1", "sdxl", "sd3")
METHODS = ("lora", "dreambooth", "textual_inversion", "pivotal", "full")


def test_no_file_without_a_subject() -> None:
    shapeless = {"utils.py", "util.py", "misc.py", "helpers.py", "common.py"}
    assert not [s.name for s in sources("src", "pretraining", "benchmarks") if s.path.name in shapeless]


def test_no_file_is_a_product_of_family_and_method() -> None:
    products = [
        s.name
        for s in sources("src")
        if any(family in s.path.stem for family in FAMILIES) and any(method in s.path.stem for method in METHODS)
    ]
    assert not products, f"one file per family and one per method, never one per pair: {products}"


def test_interfaces_carry_the_plain_name() -> None:
    based = [
        f"{source.name}: class {node.name}"
        for source in sources("src", "pretraining", "benchmarks")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ClassDef) and (node.name.startswith("Base") or node.name.endswith("Base"))
    ]
    assert not based, f"name the interface after the thing itself: {based}"
