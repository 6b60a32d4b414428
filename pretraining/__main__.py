"""Run one stage of the pretraining, or all: `python -m pretraining STAGE [--work FOLDER]`."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from limner.families.source import ASSETS

STAGES = ("pictures", "demo", "text", "vae", "unet", "decoder", "image_tower", "judge", "export", "results", "subject")
XL_STAGES = ("xl_text", "xl", "xl_refiner", "xl_results")


def main() -> None:
    """Parse the command line and run the stages in order."""
    parser = argparse.ArgumentParser(prog="python -m pretraining", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "adopt", "all", *XL_STAGES, "tiny-xl"])
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--minutes", type=float, help="training time of this stage, in minutes")
    parser.add_argument("--base", type=Path, default=ASSETS / "tiny", help="the base that `tiny-xl` begins with")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for stage in {"all": STAGES, "tiny-xl": XL_STAGES}.get(arguments.stage, (arguments.stage,)):
        module = importlib.import_module(f"pretraining.{stage}")
        timed = {"minutes": arguments.minutes} if arguments.minutes else {}
        based = {"base": arguments.base} if stage in XL_STAGES else {}
        module.run(arguments.work, **timed, **based)


if __name__ == "__main__":
    main()
