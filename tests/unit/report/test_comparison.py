"""The page of several runs side by side."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from limner.errors import UserError
from limner.evaluate.evaluate import evaluate
from limner.metrics.colour_histogram import ColourHistogram
from limner.metrics.scores import Scores
from limner.report.report import report
from limner.rundir import RunDir, read_json, write_json
from tests.unit.evaluate.synthetic import make_run
from tests.unit.report.test_report import Page

Made = tuple[list[RunDir], Path, Scores, str]


def side_by_side(runs: list[RunDir], scores: Path) -> str:
    return report(runs, scores, scores.with_suffix(".html")).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("runs")
    runs = [
        make_run(folder / "star-1", prompts=8, images=2, prior=False),
        make_run(folder / "star-2", prompts=8, images=2, prior=True),
        make_run(folder / "star <3>", prompts=8, images=2, kind="full", tuned_like_base=True),
    ]
    (runs[2].path / "model").mkdir()
    for path in (runs[0].class_pictures / "manifest.json", runs[0].log):
        path.unlink()
    for step in (1, 2, 3):
        runs[0].append_log("step", step=step, loss=0.1, instance_loss=0.1, prior_loss=None, seconds=0.2)
    runs[0].append_log("phase", name="train", seconds=20.0, peak_memory_gib=0.5)
    runs[2].append_log("phase", name="class pictures", seconds=0.0, peak_memory_gib=1.4)
    runs[2].update_provenance(
        adapter={"kind": "full", "trainable_parameters": 14_200_000, "base_parameters": 14_200_000,
                 "file_bytes": 56_800_000},
    )  # fmt: skip
    log = runs[1].log.read_text(encoding="utf-8")
    runs[1].log.write_text(log.replace('"peak_memory_gib": 0.6', '"peak_memory_gib": 1.4'), encoding="utf-8")
    out = folder / "comparison.json"
    scores = evaluate(runs, out, encoders=[ColourHistogram()])
    return runs, out, scores, side_by_side(runs, out)


def test_the_page_is_whole_loads_nothing_and_every_link_leads_somewhere(made: Made) -> None:
    page = Page(made[3])
    assert page.open == []
    assert all(a.startswith(("data:", "#")) for a in page.addresses), page.addresses
    assert not {a[1:] for a in page.addresses if a.startswith("#")} - page.ids


def test_every_image_of_every_arm_is_there(made: Made) -> None:
    shown = [image["alt"] for image in Page(made[3]).images]
    images = sum(made[2].design.images.values())
    for arm in made[2].design.arms:
        assert sum((alt or "").startswith(f"{arm}: a photo of") for alt in shown) >= images


def test_rows_stand_in_the_order_of_the_arms(made: Made) -> None:
    pair = re.search(r'<figure class="pair".*?</figure>', made[3], re.DOTALL)
    assert pair is not None
    assert re.findall(r'alt="([^:"]*): ', pair[0]) == ["base", "lora", "dreambooth-lora", "dreambooth"]
    assert len(set(re.findall(r"--hue:var\((--arm-\d)\)", pair[0]))) == 4


def test_arms_have_their_runs_names_and_settings(made: Made) -> None:
    for name in ("star-1", "star-2", "star &lt;3&gt;"):
        assert f'<p class="run">{name}</p>' in made[3]
    assert "<td><code>prior.enabled</code></td><td>false</td><td>true</td><td>true</td>" in made[3]


def test_the_verdict_says_who_learned_and_who_did_better(made: Made) -> None:
    assert "<h1>Two of three learned the subject.</h1>" in made[3]
    assert '<p class="lead">Learned by lora and dreambooth-lora.</p>' in made[3]
    assert re.search(r"<p>lora looks more like the subject than dreambooth, by 0\.\d\d.\[0\.\d\d, ", made[3])


def test_every_difference_between_arms_stands_on_the_page(made: Made) -> None:
    page = made[3]
    for metric in made[2].metrics:
        between = [d for d in metric.differences if d.to != "base"]
        assert len(between) == 3
    heads = re.findall(r'<span class="head"[^>]*>([^<]*)</span> − <span class="head"[^>]*>([^<]*)</span>', page)
    assert heads[:3] == [("dreambooth-lora", "lora"), ("dreambooth", "lora"), ("dreambooth", "dreambooth-lora")]
    assert len(heads) == 3 * len(made[2].metrics)


def test_costs_stand_side_by_side(made: Made) -> None:
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', made[3], re.DOTALL))
    figures = {what: re.findall(r'class="figure">(.*?)<', cells) for what, cells in rows.items()}
    details = {what: re.findall(r'class="detail">(.*?)<', cells) for what, cells in rows.items()}
    assert figures["Trained parameters"] == ["120,000", "120,000", "14.2 M"]
    assert details["Trained parameters"] == ["118× fewer than the base"] * 2 + ["the whole model"]
    assert details["File"] == ["adapter.safetensors", "adapter.safetensors", "model"]
    assert figures["Memory at most"] == ["0.5 GiB", "1.4 GiB", "1.4 GiB"]


def test_class_pictures_cost_every_arm_that_learned_from_them(made: Made) -> None:
    rows = dict(re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', made[3], re.DOTALL))
    cells = re.findall(r'class="figure">(.*?)<.*?class="detail">(.*?)<', rows["Training, class pictures included"])
    assert cells == [("20 s", ""), ("1 min 35 s", "1 min 04 s + 31 s for class pictures")] + [
        ("1 min 35 s", "1 min 04 s + 31 s for class pictures")
    ]
    assert "The shortest training is that of lora: 20 s, class pictures included" in made[3]
    assert "The smallest file" not in made[3], "two are equally small"


def test_the_losses_of_all_arms_share_one_plot(made: Made) -> None:
    (plot,) = re.findall(r"<svg.*?</svg>", made[3], re.DOTALL)
    assert len(re.findall("<polyline", plot)) == 5
    assert 'class="raw' not in plot
    for name in ("lora", "dreambooth-lora", "dreambooth-lora, class pictures (prior)", "dreambooth"):
        assert f"</i>{name}, 0." in made[3]


def test_the_whole_model_alone_is_not_called_an_adapter(made: Made) -> None:
    run = made[0][2]
    evaluate([run], run.scores, encoders=[ColourHistogram()])
    page = side_by_side([run], run.scores)
    assert "the whole model" in page
    assert "fewer trained parameters" not in page
    assert "adapter.safetensors" not in page


def test_the_order_of_the_runs_does_not_matter(made: Made) -> None:
    runs, scores, _, page = made
    assert side_by_side(runs[::-1], scores) == page


def test_scores_of_other_runs_are_refused(made: Made) -> None:
    runs, scores, _, _ = made
    with pytest.raises(UserError, match=r"holds the scores of other runs \(star-1, star-2, star <3>\)"):
        side_by_side(runs[:2], scores)
    with pytest.raises(UserError, match="Make it with: limner evaluate .*star-1 .*star-2"):
        side_by_side(runs[:2], scores.with_name("none.json"))


def test_images_made_after_the_scores_are_refused(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / kind, prompts=2, images=1, kind=kind) for kind in ("lora", "full")]
    scores = tmp_path / "comparison.json"
    evaluate(runs, scores, encoders=[ColourHistogram()])
    path = runs[1].images / "tuned" / "manifest.json"
    manifest = read_json(path)
    write_json(path, {**manifest, "images": manifest["images"][:-1]})
    with pytest.raises(UserError, match="changed after .*comparison.json was written. Score again: limner evaluate"):
        side_by_side(runs, scores)
