from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from limner.evaluate.evaluate import evaluate
from limner.metrics.colour_histogram import ColourHistogram
from limner.report.model_card import plain
from limner.report.report import report
from limner.rundir import RunDir
from tests.unit.evaluate.synthetic import make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, dict[str, Any], str]:
    run = make_run(tmp_path_factory.mktemp("runs") / "star-1", prompts=6, images=1)
    run.adapter.touch()
    evaluate([run], run.scores, encoders=[ColourHistogram()])
    report([run], run.scores, run.report)
    _, head, text = (run.path / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return run, yaml.safe_load(head), text


def test_the_head_is_what_a_hub_reads(made: tuple[RunDir, dict[str, Any], str]) -> None:
    run, head, _ = made
    assert head["library_name"] == "diffusers"
    assert head["instance_prompt"] == "a photo of a sks critter on a red background"
    assert {"lora", "text-to-image"} <= set(head["tags"])
    assert all((run.path / one["output"]["url"]).is_file() for one in head["widget"])


def test_every_picture_is_there_and_every_score_is_told(made: tuple[RunDir, dict[str, Any], str]) -> None:
    run, _, text = made
    shown = [part.partition(")")[0] for part in text.split("![](")[1:]]
    assert len(shown) == 8
    assert all((run.path / file).is_file() for file in shown)
    assert text.count("| colour_histogram |") == len(
        evaluate([run], run.path / "again.json", encoders=[ColourHistogram()]).metrics
    )


def test_it_says_how_to_load_it_and_names_no_folder_of_this_machine(made: tuple[RunDir, dict[str, Any], str]) -> None:
    run, _, text = made
    assert 'pipe.load_lora_weights("adapter.safetensors")' in text
    assert str(run.path.parent) not in text


def test_what_users_write_stays_text() -> None:
    assert plain("a <b>|`x`\n# y & z") == "a &#60;b&#62;&#124;&#96;x&#96; &#35; y &#38; z"
    assert plain(Path("a_b")) == "a_b"
