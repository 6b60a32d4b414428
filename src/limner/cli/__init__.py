"""The verbs: parse, call run, print. No logic."""

from limner.cli import runs, sharing, timing, upkeep  # the verbs, in the order of --help
from limner.cli.app import app
from limner.cli.ending import main

__all__ = ["app", "main", "runs", "sharing", "timing", "upkeep"]
