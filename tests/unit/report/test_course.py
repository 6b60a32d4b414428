"""The course of a training on the page: curves where the numbers are, and the pictures of steps that matter."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from limner.metrics.course import Course, Curve, Knee
from limner.metrics.scores import Interval, Level
from limner.report.course import course_plots, films, shown_steps
from limner.report.material import Trained
from limner.report.report import environment
from limner.rundir import RunDir, write_json

STEPS = (0, 10, 20, 30, 40)


def trained(folder: Path, *, knee: int) -> Trained:
    """Return an arm whose likeness is 0.1 a step's tenth, judged on one subject's and one class prompt."""
    scores = {
        step: Interval(mean=step / 100, low=step / 100 - 0.1, high=step / 100 + 0.1, n_images=8, n_units=8,
                       unit="prompt")
        for step in STEPS
    }  # fmt: skip
    levels = tuple(Level(name=str(v), title=f"near {v}", value=v, pairs=3) for v in (0.25, 7.0))
    curve = Curve(kind="subject_fidelity", encoder="lite0", title="Likeness", says="", better="higher", levels=levels,
                  prompts=("subject/0",), values={step: (step / 100,) for step in STEPS}, scores=scores)  # fmt: skip
    found = Knee(step=knee, is_conclusive=True, is_growing=False, waited=1, later_gain=None, forgetting=None,
                 is_forgetting=False, words=f"From step {knee} on.")  # fmt: skip
    run = RunDir(folder)
    for step in STEPS:
        rows = [
            {"file": f"{kind}.png", "set": kind, "prompt": f"a {kind}", "prompt_index": 0, "image_index": 0}
            for kind in ("subject", "class")
        ]
        write_json(run.validation / f"step-{step:06d}" / "manifest.json", {"images": rows})
    return Trained(arm="tuned", run=run, previews=(), class_pictures=(), steps=(), validations=(), phases=(),
                   course=Course(key="", curves=(curve,), knee=found), recipe="",
                   provenance={"chosen": {"step": 40}})  # fmt: skip


def test_curves_and_knee_stand_where_the_numbers_are(tmp_path: Path) -> None:
    (plot,) = course_plots([trained(tmp_path, knee=20)])
    (line,) = plot.lines
    low, high = (float(tick.value) for tick in (plot.y_ticks[0], plot.y_ticks[-1]))
    assert low <= -0.1 < 0.5 <= high
    places = [tuple(map(float, place.split(","))) for place in line.points.split()]
    assert [x for x, _ in places] == [0, 250, 500, 750, 1000]
    assert [round(low + (400 - y) / 400 * (high - low), 3) for _, y in places] == [0.0, 0.1, 0.2, 0.3, 0.4]
    assert len(line.band.split()) == 2 * len(STEPS)
    assert (line.knee, line.knee_at) == (20, 50.0)
    assert [level.value for level in plot.levels] == [0.25], "a level far away would flatten the curve"


def test_the_first_prompts_are_shown_over_the_steps(tmp_path: Path) -> None:
    (film,) = films([trained(tmp_path, knee=20)])
    assert (film.words, film.taken) == ("From step 20 on.", "The result is of step 40.")
    assert [prompt for prompt, _ in film.rows] == ["a subject", "a class"]
    for _, frames in film.rows:
        assert [frame.step for frame in frames] == list(STEPS)
        assert [frame.step for frame in frames if frame.is_knee] == [20]
        assert frames[1].file.parent.name == "step-000010"


def test_the_page_marks_the_step_and_points_nowhere(tmp_path: Path) -> None:
    one = trained(tmp_path, knee=20)
    for step in STEPS:
        for kind in ("subject", "class"):
            Image.new("RGB", (8, 8), (step, 0, 0)).save(one.run.validation / f"step-{step:06d}" / f"{kind}.png")
    page = environment(("base", "tuned")).get_template("course.html.j2")
    text = page.render(course_plots=course_plots([one]), films=films([one]), several=False)
    assert text.count('<figure class="knee">') == 2
    assert text.count('src="data:image/') == 2 * len(STEPS) == text.count("<img")
    assert "From step 20 on. The result is of step 40." in text
    assert "near 7.0: 7" in text, "a level that is not drawn is told all the same"


def test_of_many_steps_the_base_the_knee_and_the_last_are_shown() -> None:
    many = tuple(range(0, 1010, 10))
    for knee in (10, 430, 990, 1000):
        shown = shown_steps(many, knee)
        assert len(shown) == 9
        assert {0, knee, 1000} <= set(shown)
    assert shown_steps((0, 10), 10) == (0, 10)
