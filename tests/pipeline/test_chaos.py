"""Real processes that are stopped, killed, failed by their disk, or two at once: all end as one that was left alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.disturbed import PHASES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks up in /proc which file is being written"),
]
LEFT_BY_HAND = "Stopped. What is finished stays; a run goes on with: limner train --resume RUN"


@pytest.fixture(scope="module")
def came(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, Any]:
    """Disturb runs in one process that imports everything once; return what came of it."""
    folder = tmp_path_factory.mktemp("disturbed")
    command = [sys.executable, "-m", "tests.pipeline.disturbed", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_is_exit_code_130_and_one_line(came: dict[str, Any], phase: str) -> None:
    ended = came["one signal"][phase]
    assert (ended["code"], ended["phase"]) == (130, phase), ended["said"]
    *before, last = ended["said"].splitlines()
    at_a_step = r"Stopped at step \d+ of 6: .* are saved. Continue with: limner train --resume "
    assert last == LEFT_BY_HAND or (phase == "train" and re.match(at_a_step, last)), last
    assert not [line for line in before if line.startswith("Stopped")]
    assert "Traceback" not in ended["said"]


@pytest.mark.parametrize("phase", ["train", "evaluate"])
def test_a_second_signal_leaves_without_a_word_too_many(came: dict[str, Any], phase: str) -> None:
    ended = came["two signals"][phase]
    assert ended["code"] == 130
    assert "Traceback" not in ended["said"]
    assert came["one signal"][f"after {phase}"]["code"] == 0, "it goes on all the same"


def test_what_was_stopped_again_and_again_ends_as_what_was_not(came: dict[str, Any]) -> None:
    assert came["whole"] == [0, 0, 0]
    assert came["as alone"]["stopped"]


def test_two_at_once_on_one_cache_end_as_one_alone(came: dict[str, Any]) -> None:
    assert came["both at once"] == [0, 0]
    assert came["as alone"]["a"]
    assert came["as alone"]["b"]


def test_a_second_process_on_one_run_is_told_of_the_first(came: dict[str, Any]) -> None:
    assert came["third"]["code"] == 2
    assert "run: is being trained by process " in came["third"]["said"]


def test_killed_and_failed_by_its_disk_a_run_still_ends_as_one_left_alone(came: dict[str, Any]) -> None:
    """What is compared is in `benchmarks/chaos.py`, whose long version kills a hundred times."""
    assert (sum(came["chaos"]["kills"].values()), sum(came["chaos"]["faults"].values())) == (10, 5)
    assert came["left"] == [], "half-made files"
