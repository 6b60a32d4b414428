"""The verbs: parse, call run, print. No logic."""

from limner.cli import runs, combining, sharing, timing, upkeep  # isort: skip  # the verbs, in the order of --help
from limner.cli.app import app
from limner.cli.ending import main

__all__ = ["app", "combining", "main", "runs", "sharing", "timing", "upkeep"]
