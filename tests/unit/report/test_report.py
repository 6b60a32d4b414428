from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from limner.errors import UserError
from limner.evaluate.evaluate import evaluate
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.scores import Scores
from limner.report.report import report
from limner.rundir import RunDir
from tests.unit.evaluate.synthetic import make_run


class Page(HTMLParser):
    """Collects what a page's tags point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.add(str(found["id"]))
        self.addresses += [
            str(found[name]) for name in ("src", "href", "srcset", "action", "poster") if found.get(name)
        ]
        if tag == "img":
            self.images.append(found)
        if tag not in ("img", "meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Scores, str]:
    run = make_run(tmp_path_factory.mktemp("runs") / "star <&> run", prompts=6, images=2)
    scores = evaluate([run], run.scores, encoders=[ColourHistogram()])
    return run, scores, report([run], run.scores, run.report).read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(made: tuple[RunDir, Scores, str]) -> None:
    page = Page(made[2])
    assert page.open == []
    assert all(a.startswith(("data:", "#")) for a in page.addresses), page.addresses
    assert not re.search(r"url\((?!data:)|@import|https?://", re.sub(r"data:[^\"')]*", "", made[2]))


def test_what_was_not_measured_is_said_with_the_way_to_it(made: tuple[RunDir, Scores, str]) -> None:
    _, _, said = made[2].partition("What was not measured, and why")
    assert "identification.colour_histogram</code>: there are no pictures of other subjects" in said
    assert "evaluation.distractors=FOLDER" in said


def test_every_link_leads_to_a_place_on_the_page(made: tuple[RunDir, Scores, str]) -> None:
    page = Page(made[2])
    missing = {a[1:] for a in page.addresses if a.startswith("#")} - page.ids
    assert not missing


def test_every_picture_is_there_with_words_for_those_who_cannot_see_it(made: tuple[RunDir, Scores, str]) -> None:
    _, scores, text = made
    page = Page(text)
    pairs = 2 * sum(scores.design.images.values())
    shown = [image for image in page.images if image.get("src")]
    assert len(shown) >= pairs + scores.design.training_pictures + scores.design.class_pictures
    assert all(image["alt"] for image in shown)


def test_every_score_stands_on_the_page_and_leads_to_its_pictures(made: tuple[RunDir, Scores, str]) -> None:
    _, scores, text = made
    for metric in scores.metrics:
        assert f'id="values-{metric.key}"' in text
        assert f'href="#values-{metric.key}"' in text
    for image in scores.metrics[0].arms["tuned"].images:
        assert f'href="#{Path(image.file).stem}"' in text


def test_the_verdict_holds_its_numbers(made: tuple[RunDir, Scores, str]) -> None:
    _, scores, text = made
    metric = scores.find("subject_fidelity")
    assert metric is not None
    assert "<h1>It learned the subject.</h1>" in text
    assert f"a difference of +{metric.differences[0].score.mean:.2f}\N{NO-BREAK SPACE}[" in text


def test_names_are_escaped(made: tuple[RunDir, Scores, str]) -> None:
    assert "star <&> run" not in made[2]
    assert "star &lt;&amp;&gt; run" in made[2]


def test_costs_are_counted_not_quoted(made: tuple[RunDir, Scores, str]) -> None:
    assert "118×" in made[2]
    assert "120,000 against the base" in made[2]
    assert "485 kB" in made[2]


def test_previews_stand_in_the_order_of_their_steps(made: tuple[RunDir, Scores, str]) -> None:
    shown = [image["alt"] for image in Page(made[2]).images if "preview" in (image["alt"] or "")]
    assert shown == ["preview at step 50", "preview at step 100"]


def test_the_command_and_the_encoders_are_named(made: tuple[RunDir, Scores, str]) -> None:
    _, scores, text = made
    assert "limner demo --run runs/demo" in text
    for encoder in scores.encoders:
        assert encoder.identity in text


def test_the_same_folder_makes_the_same_page(made: tuple[RunDir, Scores, str]) -> None:
    assert report([made[0]], made[0].scores, made[0].report).read_text(encoding="utf-8") == made[2]


def test_a_run_cut_short_still_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "cut", prompts=2, images=1)
    evaluate([run], run.scores, encoders=[ColourHistogram()])
    for path in (run.log, run.provenance, run.class_pictures / "manifest.json"):
        path.unlink()
    shutil.rmtree(run.previews)
    text = report([run], run.scores, run.report).read_text(encoding="utf-8")
    assert "Too few images to tell." in text
    assert "How it learned" not in text


def test_identical_arms_say_no_difference(tmp_path: Path) -> None:
    run = make_run(tmp_path / "same", tuned_like_base=True, prompts=6, images=2)
    evaluate([run], run.scores, encoders=[ColourHistogram()])
    text = report([run], run.scores, run.report).read_text(encoding="utf-8")
    assert "<h1>No difference found.</h1>" in text
    assert 'class="badge better"' not in text
    assert 'class="badge worse"' not in text


def test_a_run_without_scores_says_what_to_do(tmp_path: Path) -> None:
    run = make_run(tmp_path / "unscored", prompts=1, images=1)
    with pytest.raises(UserError, match="scores.json: is not there yet. Make it with: limner evaluate"):
        report([run], run.scores, run.report)


def test_damaged_scores_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "damaged", prompts=1, images=1)
    run.scores.write_text("{}")
    with pytest.raises(UserError, match="Score again: limner evaluate"):
        report([run], run.scores, run.report)
