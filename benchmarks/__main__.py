"""Print what one training step costs: `python -m benchmarks [--base NAME] [--device NAME] [--rounds N]`."""

from __future__ import annotations

import argparse
import platform

import torch

from benchmarks import training_step


def main() -> None:
    """Parse the command line, measure, print one table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--base", default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    machine = torch.cuda.get_device_name() if given.device.startswith("cuda") else platform.machine()
    print(f"{given.base}, {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"{'one step of':<34}{'milliseconds':>14}{'per subject':>14}")
    for row in training_step.measure(given.base, device=given.device, rounds=given.rounds):
        print(f"{row.name:<34}{row.step_ms:>14.1f}{row.step_ms / row.subjects:>14.1f}")


if __name__ == "__main__":
    main()
