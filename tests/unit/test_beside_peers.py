"""The arithmetic of the comparison with other trainers, and what is read from their processes: real ones, small."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.bare_floor import bare_unet, batch
from benchmarks.beside_peers import STANDIN, _begun, versions
from benchmarks.contenders import PEERS, Task, bar
from benchmarks.ratios import FLOOR, LIMNER, Run, least, musts, ratios, row_of, table
from benchmarks.watched import Moment, Steps, Watched, last_lines, usage, watch

TRAINER = """
import sys, time
from tqdm import tqdm
def compute(seconds):
    begun = time.process_time()
    while time.process_time() - begun < seconds: pass
print("Loading pipeline components...: 100%|##| 4/4 [00:01]", file=sys.stderr)
held = bytearray(200_000_000)  # gone before the first step
compute(0.1)
del held
{steps}
"""
DIFFUSERS = """
shown = tqdm(range(3), desc="Steps")
for step in range(3):
    compute(0.2)
    shown.update(1)
    shown.set_postfix(loss=0.1, lr=1e-4)
shown.close()
"""
KOHYA = DIFFUSERS.replace("Steps", "steps").replace("tqdm(range(3)", "tqdm(range(3), smoothing=0")
ONETRAINER = """
for epoch in tqdm(range(1), desc="epoch"):
    for path in tqdm(range(5), desc="caching"): pass
    shown = tqdm(range(3), desc="step", total=3, initial=0)
    for batch in shown:
        compute(0.2)
        shown.set_postfix({"loss": 0.1, "smooth loss": 0.1})
"""
LOG = """
for step in (1, 2, 3):
    compute(0.2)
    with open(sys.argv[1], "a") as file:
        file.write('{"event": "step", "step": %d, "loss": 1}\\n' % step)
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


@pytest.mark.parametrize(("steps", "name"), [(DIFFUSERS, "Steps"), (KOHYA, "steps"), (ONETRAINER, "step")])
def test_the_steps_of_a_real_progress_bar_are_seen_as_they_end(steps: str, name: str) -> None:
    script = TRAINER.replace("{steps}", steps)
    seen = watch([sys.executable, "-c", script], bar(name), environment=environment())
    assert seen.code == 0, seen.said
    assert sorted(seen.steps) == [1, 2, 3]
    cpu = [seen.steps[n].cpu_s for n in (1, 2, 3)]
    assert 0.28 < cpu[0] < seen.end.cpu_s  # what came before counts
    for then, after in pairwise(cpu):
        assert after - then == pytest.approx(0.2, abs=0.05)
    assert seen.steps[1].wall_s >= cpu[0] - 0.05
    assert 0.2 < seen.peak_gb < 0.35
    assert 0.2 < seen.peak_anonymous_gb <= seen.peak_gb


def test_the_steps_of_a_log_are_seen(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    script = TRAINER.replace("{steps}", LOG)
    pattern = re.compile(r'"event": "step", "step": (\d+)')
    seen = watch([sys.executable, "-c", script, str(log)], pattern, environment=environment(), log=log)
    assert sorted(seen.steps) == [1, 2, 3]
    assert row_of(seen, "x")["cpu_s_per_step"] == pytest.approx(0.2, abs=0.05)


def test_what_children_hold_and_compute_counts() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    child = TRAINER.replace("{steps}", DIFFUSERS)
    seen = watch([sys.executable, "-c", code, child], bar("Steps"), environment=environment())
    assert sorted(seen.steps) == [1, 2, 3]
    assert seen.steps[3].cpu_s - seen.steps[1].cpu_s == pytest.approx(0.4, abs=0.1)
    assert seen.peak_anonymous_gb > 0.2


def test_a_process_that_breaks_is_a_row_with_its_error() -> None:
    code = "print('Traceback'); raise SystemExit('CUDA is not available')"
    row = row_of(watch([sys.executable, "-c", code], bar("Steps"), environment=environment()), "the command")
    assert row == {"error": "exit code 1: Traceback | CUDA is not available", "command": "the command"}
    row = row_of(watch([sys.executable, "-c", "print(1)"], bar("Steps"), environment=environment()), "c")
    assert row["error"] == "0 steps were seen: 1"


def test_a_process_that_is_gone_has_no_usage() -> None:
    assert usage(os.getpid())
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert usage(done.pid) is None


def test_steps_are_read_across_pieces_and_only_of_the_bar_asked_for() -> None:
    steps = Steps(bar("step"))
    pieces = [
        "\repoch:   0%|          | 0/1 [00:00<?, ?it/s]\n\rstep:  40%|####      | 2",
        "/5 [00:08<00:12,  4.1s/it, loss=0.1]",
        "\rsteps: 100%|###| 3/3 [",
        "\rstep: 60%|██| 3/5 [00:1",
    ]
    assert [steps.of(piece) for piece in pieces] == [[], [2], [2], [3]]
    assert Steps(bar("Steps")).of("Validation Steps: 50%|#| 1/2 [00:01]\n") == []


def moments(*cpu: float) -> dict[int, Moment]:
    return {number: Moment(2 * at, at) for number, at in enumerate(cpu, 1)}


def test_a_row_is_the_median_after_the_first_step() -> None:
    seen = Watched(steps=moments(10.0, 14.0, 17.0, 27.0), end=Moment(60.0, 30.0), peak_gb=3.2, peak_anonymous_gb=3.0)
    row = row_of(seen, "c")
    assert row["cpu_s_of_steps"] == [4.0, 3.0, 10.0]
    assert (row["cpu_s_per_step"], row["wall_s_per_step"]) == (4.0, 8.0)
    assert (row["first_step_cpu_s"], row["first_step_wall_s"], row["whole_cpu_s"]) == (10.0, 20.0, 30.0)
    del seen.steps[2]  # two bars came at once: each has half of the time between
    assert row_of(seen, "c")["cpu_s_of_steps"] == [3.5, 10.0]


def run(step: float, first: float, peak: float) -> Run:
    return {"cpu_s_per_step": step, "wall_s_per_step": step, "first_step_cpu_s": first, "first_step_wall_s": first,
            "peak_gb": peak, "peak_anonymous_gb": peak}  # fmt: skip


ROUNDS = [
    {LIMNER: run(4.2, 20, 3.0), FLOOR: run(4.0, 9, 2.4), "A": run(5.0, 19, 5.0), "B": run(4.0, 30, 6.0)},
    {LIMNER: run(4.1, 22, 3.0), FLOOR: run(4.1, 9, 2.4), "A": run(5.0, 20, 5.0), "B": {"error": "gone"}},
    {LIMNER: run(4.4, 21, 3.3), FLOOR: run(4.0, 9, 2.4), "A": run(5.5, 21, 5.0), "B": run(4.4, 30, 6.0)},
]


def test_ratios_are_taken_within_a_round() -> None:
    of = ratios(ROUNDS)
    assert of[FLOOR]["cpu_s_per_step"] == {"median": 1.05, "least": 1.0, "most": 1.1}
    assert of["B"]["cpu_s_per_step"] == {"median": 1.025, "least": 1.0, "most": 1.05}


def test_what_must_hold_is_asked_of_the_best_peer_for_each_measure() -> None:
    assert [least(ROUNDS, m) for m in ("cpu_s_per_step", "first_step_cpu_s", "peak_gb")] == ["B", "A", "A"]
    told = musts(ROUNDS)
    assert [(m["beside"], m["holds"]) for m in told] == [
        (FLOOR, True),
        ("B", False),
        ("A", False),
        ("A", True),
        ("A", True),
    ]
    said = "\n".join(table(ROUNDS))
    assert "peak memory, of the lowest peer's (A): 0.600 (0.600 to 0.660), at most 0.7: yes" in said
    assert "fastest peer's (B): 1.025 (1.000 to 1.050), at most 1.0: no" in said
    assert "B                                     gone" in said


def test_without_peers_nothing_is_claimed() -> None:
    alone = [{name: row for name, row in each.items() if name in (LIMNER, FLOOR)} for each in ROUNDS]
    assert [must["holds"] for must in musts(alone)] == [True, None, None, None, None]
    assert "no peer): -, at most 0.7: not measured" in "\n".join(table(alone))


def test_what_is_measured_is_gone_on_with_if_it_is_the_same_task(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert _begun({"steps": 3}, file)["rounds"] == []
    file.write_text(json.dumps({"task": {"steps": 3}, "contenders": {}, "rounds": [{"runs": {"A": {}}}]}))
    assert _begun({"steps": 3}, file)["rounds"] == [{"runs": {"A": {}}}]
    with pytest.raises(SystemExit, match="holds another task .* Name another file"):
        _begun({"steps": 4}, file)


@pytest.mark.parametrize("is_xl", [False, True])
def test_the_peers_get_the_same_task(is_xl: bool, tmp_path: Path) -> None:
    pictures, base = tmp_path / "pictures", tmp_path / "base"
    for folder in (pictures, base / "tokenizer", *[base / "tokenizer_2", base / "text_encoder_2"] * is_xl):
        folder.mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(pictures / "0.png")
    for number, (_, peer) in enumerate(PEERS.values()):
        place = tmp_path / str(number)
        place.mkdir()
        call = peer(Task(base, pictures, 1, place, 256, 5, 4, "bfloat16"), tmp_path / "peer", "python")
        assert call.command[0] == "python"
        said = " ".join([*call.command, *(file.read_text() for file in place.glob("*.json"))])
        for asked in ("256", "0.0001" if "config.json" in said else "1e-4", str(base)):
            assert asked in said
        assert ("sdxl" in said or "_XL_" in said) == is_xl


@pytest.mark.parametrize("base", ["random_sd15", "random_xl"])
def test_the_floor_is_the_unet_of_the_base(base: str, request: pytest.FixtureRequest) -> None:
    unet = bare_unet(str(request.getfixturevalue(base)), torch.float32)
    unet(**batch(unet, 8)).sample.square().mean().backward()
    assert all(weight.grad is None for weight in unet.parameters())


def test_the_stand_in_does_what_the_peers_ask_of_torchvision() -> None:
    code = """
import torch
from PIL import Image
from torchvision import transforms
from torchvision.io import read_image
import torchvision.transforms.v2.functional as v2
from torchvision.transforms import functional, transforms as same
image = Image.new("RGB", (96, 64), (255, 0, 128))
todo = transforms.Compose([transforms.Resize(32, interpolation=transforms.InterpolationMode.BICUBIC),
    transforms.CenterCrop(32), transforms.RandomHorizontalFlip(), transforms.Lambda(lambda x: x),
    transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
pixels = todo(image)
assert pixels.shape == (3, 32, 32) and pixels[0].eq(1).all() and pixels[1].eq(-1).all()
assert transforms.RandomCrop(16)(pixels).shape == (3, 16, 16)
top, left, *size = transforms.RandomCrop(16).get_params(pixels, (16, 16))
assert 0 <= top <= 16 and 0 <= left <= 16 and size == [16, 16]
small = same.Resize((8, 12), antialias=True)(functional.pil_to_tensor(image).float())
assert small.shape == (3, 8, 12) and torch.allclose(small[2], torch.tensor(128.0))
assert v2.resize is functional.resize
image.save(r"{file}")
assert read_image(r"{file}").equal(functional.pil_to_tensor(image))
"""
    file = Path(os.environ.get("TMPDIR", "/tmp")) / f"standin-{os.getpid()}.png"
    try:
        subprocess.run([sys.executable, "-c", code.replace("{file}", str(file))], check=True,
                       env={**os.environ, "PYTHONPATH": str(STANDIN)})  # fmt: skip
    finally:
        file.unlink(missing_ok=True)


def test_versions_are_those_of_the_python_asked() -> None:
    found = versions(sys.executable)
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_the_end_of_what_was_said_is_one_line() -> None:
    assert last_lines("a\n\n b \rc\n") == "a | b | c"
    assert last_lines("a\nb\nc\nd", 2) == "c | d"
