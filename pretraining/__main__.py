"""Run one stage of the pretraining, or all: `python -m pretraining STAGE [--work FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

STAGES = ("pictures", "demo", "text", "vae", "unet", "decoder", "judge", "export", "results", "subject")


def main() -> None:
    """Parse the command line and run the stages in order."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "adopt", "all"])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--minutes", type=float, help="training time of this stage, in minutes")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        module = importlib.import_module(f"pretraining.{stage}")
        timed = {"minutes": arguments.minutes} if arguments.minutes else {}
        module.run(arguments.work, **timed)


if __name__ == "__main__":
    main()
