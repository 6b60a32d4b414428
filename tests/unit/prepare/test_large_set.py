"""A thousand pictures: killed twice in the middle, no work is done twice, and memory stays bounded."""

import json
import subprocess
import sys

import pytest

from limner.prepare.facts import WRITE_EVERY

PICTURES = 1000


@pytest.mark.slow
def test_a_large_set_survives_kill_and_resumes(root):
    command = [sys.executable, "-m", "benchmarks.data.large_set", "--pictures", str(PICTURES), "--resolution", "16"]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    assert found["checked"] == PICTURES
    assert PICTURES // 3 <= found["looks_kept_by_the_first_kill"] < PICTURES
    assert found["decoded_by_the_second_run"] == PICTURES - found["looks_kept_by_the_first_kill"]
    assert found["looks_kept_by_the_first_kill"] % WRITE_EVERY == 0
    assert PICTURES // 3 <= found["entries_kept_by_the_second_kill"] < PICTURES
    assert found["decoded_to_check"] == 0
    assert found["encoded"] < PICTURES - found["entries_kept_by_the_second_kill"] + 16
    reused = found["entries_kept_by_the_second_kill"]
    assert found["note"] == f"cache: {reused} reused, {PICTURES - reused} rebuilt"
    assert found["peak_mib"] < 2048
