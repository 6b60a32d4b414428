"""Bad input: one clear line (where, what was found, what is allowed, what to do), exit code 2, nothing half-made.

To add a case, write a row: a name, the words of the command line, and what the line has to say (a regular expression).
`{pictures}` is a good folder, `{base}`, `{xl}` and `{refiner}` are good bases, `{bad}` the folder that the fixture of that name fills. `train`
gets `--run {bad}/new`, and every verb `--json`, where the row does not say otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limner.families.source import ASSETS
from limner.recipe import load_recipe, save_recipe
from tests.pipeline.bad_decoders import DECODERS
from tests.pipeline.bad_loras import SHARING, make_bad_loras
from tests.pipeline.bad_merges import COMBINING
from tests.pipeline.conftest import Result

PICTURES = ASSETS / "demo" / "critter"
DEMO = "train {pictures} --recipe demo base={base}"


class Row(NamedTuple):
    """One bad input."""

    words: str | list[str]
    """What follows `limner`: split at blanks, or a list where a word has some."""
    message: str
    environment: dict[str, str] = {}
    lines: int = 1
    """How many lines the message has: more than one where it lists all bad files."""


FLAGS = {
    "no such verb": Row("trane", "No such command 'trane'.*(See|Did you mean)"),
    "no such flag": Row("train {pictures} --rank 4", r"No such option: --rank .*Settings are key=value: did you mean adapter.rank=...\? See: limner --help"),
    "flag without value": Row("train {pictures} --recipe", "--recipe.* requires an argument"),
    "missing argument": Row("evaluate", "Missing argument .RUN.*. See: limner --help"),
    "no pictures": Row("train", "no pictures were given. Name a folder"),
    "plan of nothing": Row("plan", "plan: no pictures were given. Name a folder of pictures, or .*--subjects"),
    "plan of one and many": Row("plan {pictures} --subjects {bad}/outer", "--subjects .*outer: takes no pictures"),
    "plan from nowhere": Row("plan {pictures} --recipe demo base={base} init_from=./nowhere", "init_from=./nowhere: there is no such run or file"),
    "memory that is no number": Row("plan {pictures} --recipe demo base={base} fit=much", "fit='much': is no amount of memory. Use true, .*fit=8GB"),
    "setting without equals sign": Row("train {pictures} steps 4", "steps: is a setting without its value. Write steps="),
    "setting twice": Row("train {pictures} steps=1 steps=2", "steps: is set twice .1 and '2'.. Give it once"),
    "resume with pictures": Row("train {pictures} --resume {bad}/untrained", "takes no pictures"),
    "resume with a recipe": Row("train --resume {bad}/untrained --recipe demo", "takes no --recipe"),
    "resume with a run folder": Row("train --resume {bad}/untrained --run {bad}/other", "takes no --run"),
    "seeds that are words": Row("generate {base} --prompt x --seeds many", "'many' is not a number"),
    "no seeds": Row("generate {base} --prompt x --seeds 0", "--seeds 0: draws nothing"),
    "seeds with a gap": Row("generate {base} --prompt x --seeds 1,,2", "--seeds 1,,2: '' is not a number"),
    "strength that is a word": Row("generate {base} --prompt x --adapter {bad}/a.safetensors:big", "'big' is not a number"),
    "strength that is no number": Row("generate {base} --prompt x --adapter {bad}/lora.safetensors:nan", "'nan' is not a number"),
    "cache of less than nothing": Row("cache prune --keep -1", "Invalid value for '--keep': .*greater than or equal to 0"),
    "explain nothing": Row("explain adaptor", "'adaptor': is not a setting. Did you mean adapter?"),
    "explain a misspelt setting": Row("explain adapter.rnk", r"Did you mean adapter.rank\?"),
}  # fmt: skip

SETTINGS = {
    "unknown setting": Row("train {pictures} adapter.rnk=4", r"settings: adapter.rnk is not a setting. Did you mean adapter.rank\?"),
    "setting of the wrong kind": Row("train {pictures} steps=many", "steps = 'many' is not allowed .*integer.*See: limner explain steps"),
    "number out of range": Row("train {pictures} steps=0", "steps = 0 is not allowed .*greater than or equal to 1"),
    "rate that is no number": Row("train {pictures} learning_rate=nan", "learning_rate = nan is not allowed"),
    "rate without end": Row("train {pictures} learning_rate=inf", "learning_rate = inf is not allowed"),
    "rate below zero": Row("train {pictures} learning_rate=-1e-4", "learning_rate = -0.0001 is not allowed"),
    "batch of nothing": Row("train {pictures} batch=0", "batch = 0 is not allowed"),
    "word that is not offered": Row("train {pictures} precision=fp16", "precision = 'fp16' is not allowed .*'float16'"),
    "sampler that is not there": Row("train {pictures} generation.scheduler=euler_a", "generation.scheduler = 'euler_a' is not allowed .*'euler'"),
    "section as a setting": Row("train {pictures} adapter=lora", r"adapter = 'lora' is not allowed \(it is a section\). Did you mean adapter.kind=lora\?"),
    "section as a number": Row("train {pictures} adapter=4", r"adapter = 4 is not allowed \(it is a section\). Set its parts, such as adapter.kind"),
    "one word for a list": Row(DEMO + " tracking=tensorboard", r"tracking = 'tensorboard' is not allowed \(input should be a list, such as \["),
    "no layers at all": Row(DEMO + " adapter.targets=[] adapter.text_encoder=false", "nothing would learn"),
    "setting as a section": Row("train {pictures} steps.x=4", "steps.x"),
    "misspelt member": Row("train {pictures} optimizer.kind=prodgy", r"Did you mean prodigy\?"),
    "setting of another member": Row("train {pictures} adapter.vectors=4", "adapter.vectors has no meaning for adapter.kind=lora.* use adapter.kind="),
    "option that a method has not": Row("train {pictures} adapter.kind=peft adapter.method=dora adapter.options={{x=1}}", "dora has no option x; its options are: use_rslora"),
    "timesteps that hold none": Row(["train", "{pictures}", "objective.timestep_range=[0.5, 0.5001]"], "timestep_range = .*holds no timestep"),
    "colour that is none": Row("train {pictures} pictures.alpha=blu", "'blu' is not a colour; write a name such as"),
    "setting without effect": Row(DEMO + " preview.images=2", "preview.images: has no effect, because preview.every_steps is 0"),
    "two lengths": Row(DEMO + " steps=4 epochs=2", "Give exactly one of steps, epochs and exposures .got steps=4 and epochs=2"),
    "no length": Row("train {pictures} --recipe {bad}/short.toml base={base}", "Give exactly one of steps, epochs and exposures .got none"),
    "warm-up as long as the run": Row(DEMO + " steps=4 optimizer.warmup_steps=4", "optimizer.warmup_steps=4 is not shorter than the run"),
    "rate for an optimizer that finds it": Row(DEMO + " optimizer.kind=prodigy", "learning_rate=0.001 is only a factor .* Set learning_rate=1"),
    "two averages": Row(DEMO + " optimizer.kind=schedule_free optimizer.schedule=constant ema.decay=0.9", "keeps an average of its own"),
    "words in braces": Row([*DEMO.split(), "pictures.caption=a photo of {{subject}}"], r"nothing fills in. Did you mean \{token\}\?"),
    "comparison without the subject": Row([*DEMO.split(), 'evaluation.prompts=["a dog"]'], r"'a dog' has no \{{0,1}subject"),
    "no class noun": Row("train {pictures} base={base}", "pictures.class_noun: is not set.* pictures.class_noun=dog"),
    "token in the class prompt": Row([*DEMO.split(), 'prior.prompts=["a sks dog"]'], "contains the trigger 'sks'"),
    "token of two words": Row([*DEMO.split(), "pictures.token=my dog"], "pictures.token='my dog': must be one word"),
    "word that is known already": Row(DEMO + " adapter.kind=textual_inversion prior.enabled=false pictures.token=robot", "is already a word in the base's vocabulary"),
    "prior that cannot work": Row(DEMO + " adapter.kind=textual_inversion", "captions do not hold the new word"),
    "layers that are not there": Row(DEMO + " adapter.targets=attn prior.enabled=false", "'attn' matches none"),
    "resolution that does not fit": Row(DEMO + " resolution=60", "resolution=60: this base needs a multiple of .*Use "),
    "prediction that pure noise forbids": Row(DEMO + " adapter.kind=full objective.prediction_type=epsilon objective.zero_terminal_snr=true", "zero_terminal_snr=true: .* predicts epsilon"),
    "tracker that is not installed": Row(DEMO + " tracking=['swanlab']", "tracking: swanlab is not installed. .*pip install swanlab"),
    "tracker that nobody knows": Row(DEMO + " tracking=['tensorbord']", "tracking.* is not allowed .*'tensorboard'"),
}  # fmt: skip

REFINED = "train {pictures} --recipe demo prior.enabled=false base={xl} generation.refiner={refiner}"
REFINER = "train {pictures} --recipe demo base={refiner}"
VALIDATIONS = {
    "choosing by nothing": Row(f"{DEMO} steps=50 checkpoint.choose=evidence", "validation.every_steps is 0. Set it as well, such as validation.every_steps=5"),
    "choosing by no such thing": Row(f"{DEMO} checkpoint.choose=best", "checkpoint.choose = 'best' is not allowed"),
    "validating on what is reported": Row([*DEMO.split(), "validation.every_steps=5", 'evaluation.prompts=["a drawing of a {{subject}}"]'], "validation.prompts: 'a drawing of a {subject}' is one of the comparison's"),
    "patience without validations": Row(f"{DEMO} validation.patience=3", "validation.patience: has no effect, because validation.every_steps is 0"),
    "validating after the end": Row(f"{DEMO} steps=10 validation.every_steps=20", "validation.every_steps=20: the run has only 10 steps"),
}  # fmt: skip
REFINERS = {
    "refiner of SD 1.5": Row(DEMO + " generation.refiner={refiner}", "generation.refiner=.*is SD 1.x, and a refiner finishes what an SDXL base begins. Leave it out"),
    "base for a refiner": Row(DEMO.replace("{base}", "{xl}") + " generation.refiner={xl}", r"generation.refiner=.*: is a base \(SDXL\), not a refiner. Use a model such as stab"),
    "refiner of a refiner": Row(REFINER + " generation.refiner={refiner}", "is the SDXL refiner, and a refiner finishes .* generation.begun_by=stab"),
    "refiner that is not there": Row(DEMO.replace("{base}", "{xl}") + " generation.refiner=./nowhere", "^generation.refiner='./nowhere': there is no such folder or file"),
    "refiner that is not downloaded": Row(DEMO.replace("{base}", "{xl}") + " generation.refiner=somebody/something", "^generation.refiner='somebody/something'.*(offline|not on this machine)"),
    "refiner begun by a refiner": Row(REFINER + " generation.begun_by={refiner}", "generation.begun_by=.*: is the SDXL refiner, not an SDXL base"),
    "refiner begun by SD 1.5": Row(REFINER + " generation.begun_by={base}", r"generation.begun_by=.*: is a base \(SD 1.x\), not an SDXL base"),
    "base begun by a base": Row(DEMO + " generation.begun_by={xl}", "generation.begun_by=.*is SD 1.x, which begins its pictures itself. Leave it out"),
    "refiner and base that begins": Row(REFINED + " generation.begun_by={xl}", "generation.refiner and generation.begun_by are both set. Keep one"),
    "class pictures by a refiner alone": Row(REFINER, "prior.enabled=true without --class-pictures: .*cannot begin a picture. .*begun_by=stab"),
    "previews by a refiner alone": Row(REFINER + " prior.enabled=false preview.every_steps=1", "preview.every_steps=1: .*cannot begin a picture"),
    "plan of a refiner alone": Row("plan {pictures} --recipe demo base={refiner}", "prior.enabled=true without --class-pictures: .*cannot begin a picture"),
    "drawing by a refiner alone": Row("generate {refiner} --prompt x", "is the SDXL refiner, which cannot begin a picture"),
    "drawing with a base for a refiner": Row("generate {xl} --prompt x generation.refiner={base}", r"generation.refiner=.*: is a base \(SD 1.x\), not a refiner"),
    "handover without a refiner": Row(DEMO + " generation.handover=0.5", "generation.handover: has no effect, because neither generation.refiner nor generation.begun_by is set"),
    "drawing, handover without a refiner": Row("generate {xl} --prompt x generation.handover=0.5", "generation.handover: has no effect, because neither"),
    "handover of everything": Row(REFINED + " generation.handover=1", "generation.handover = 1 is not allowed .*less than 1"),
    "handover that leaves nothing": Row(REFINED + " generation.handover=0.999", "generation.handover=0.999: of 12 steps the refiner takes none"),
    "score beyond the scale": Row(REFINED + " generation.aesthetic_score=11", "generation.aesthetic_score = 11 is not allowed"),
}  # fmt: skip

RECIPES = {
    "unknown recipe": Row("train {pictures} --recipe lorra", "recipe 'lorra': there is no such recipe or file. Did you mean lora"),
    "file that is not there": Row("train {pictures} --recipe {bad}/none.toml", "none.toml.*there is no such recipe or file"),
    "file that is no TOML": Row("train {pictures} --recipe {bad}/broken.toml", "broken.toml: is not readable TOML .*line 2"),
    "file of other bytes": Row("train {pictures} --recipe {bad}/latin.toml", "latin.toml: is not UTF-8 .byte 0xfc at 9.. Save it as UTF-8"),
    "folder for a file": Row("train {pictures} --recipe {bad}/empty", "there is no such recipe or file. Use .*lora"),
    "run for its recipe": Row("train {pictures} --recipe {bad}/untrained", r"Did you mean \S+/untrained/recipe.toml\?"),
    "unknown setting in a file": Row("train {pictures} --recipe {bad}/wrong.toml", r"wrong.toml:3: adapter.rnk is not a setting. Did you mean adapter.rank\?"),
    "recipe of another verb": Row("generate {base} --prompt x adapter.rank=4", "adapter.rank: has no effect on drawing"),
    "check with a misspelt setting": Row("check {pictures} adapter.rnk=4", r"Did you mean adapter.rank\?"),
    "demo with a misspelt setting": Row("demo --run {bad}/new bach=4", "bach is not a setting. Did you mean batch"),
}  # fmt: skip

FILES = {
    "no folder": Row("train {bad}/none pictures.class_noun=dog", "none.*there is no such"),
    "empty folder": Row("train {bad}/empty pictures.class_noun=dog", "(?i)no pictures"),
    "folder of folders": Row("train {bad}/outer pictures.class_noun=dog", "(?i)no pictures.*sub-folder|Did you mean"),
    "text for a picture": Row("train {bad}/full/something.txt --recipe demo base={base}", r"(?s)1 of 1 pictures cannot be used.*something.txt", lines=3),
    "broken pictures": Row("train {bad}/broken --recipe demo", r"(?s)2 of 3 pictures cannot be used.*nothing.jpg.*torn.png", lines=4),
    "captions that are not there": Row(DEMO + " pictures.captions_file={bad}/none.jsonl", "none.jsonl.*(is missing|there is no such|cannot be read)"),
    "some captions missing": Row("train {bad}/captioned --recipe demo base={base}", "1 of 2 pictures.*caption"),
    "no folder of class pictures": Row(DEMO + " --class-pictures {bad}/none", "--class-pictures=.*none: there is no such file or folder"),
    "class pictures without a prior": Row(DEMO + " prior.enabled=false --class-pictures {pictures}", "prior preservation is off"),
    "class pictures that are the subject's": Row(DEMO + " --class-pictures {pictures}", "(?i)class pictures|instance"),
    "no held-out pictures": Row(DEMO + " evaluation.pictures={bad}/none", "evaluation.pictures=.*none: there is no such file or folder"),
    "held-out pictures that are learned": Row(DEMO + " evaluation.pictures={pictures}", "(?s)5 of 5 held-out pictures were learned from.*Leave each on one side", lines=7),
    "no subjects": Row(DEMO + " pictures.subjects=true prior.enabled=false", "sub-folder"),
    "no such base": Row("train {pictures} --recipe demo base=./nowhere", "base='./nowhere': there is no such folder or file"),
    "a base that was not made yet": Row("train {pictures} --recipe demo base=tiny-xl", "base='tiny-xl': was not made on this machine yet .there is no .*full.bases.tiny-xl.. Make it .*: make tiny-xl", {"LIMNER_CACHE": "{bad}/full"}),
    "a refiner that was not made yet": Row("generate tiny-xl-refiner --prompt x", "base='tiny-xl-refiner': was not made .*make tiny-xl"),
    "not a base": Row("train {pictures} --recipe demo base={bad}/empty", "model_index.json is missing"),
    "not a checkpoint": Row("train {pictures} --recipe demo base={bad}/nothing.safetensors", "is not a readable .safetensors file"),
    "a LoRA for a base": Row("train {pictures} --recipe demo base={bad}/lora.safetensors", "(?i)is a lora"),
    "a pickled checkpoint": Row("train {pictures} --recipe demo base={bad}/model.ckpt", "model.ckpt.*(safetensors|pickle)"),
    "base that is not downloaded": Row("train {pictures} pictures.class_noun=dog base=somebody/something", "somebody/something.*(offline|not on this machine)"),
    "adapter that is not there": Row("generate {base} --prompt x --adapter {bad}/a.safetensors:0.5", "a.safetensors: there is no such file"),
    "adapter that is none": Row("generate {base} --prompt x --adapter {bad}/nothing.safetensors", "nothing.safetensors: is not a readable"),
    "folder for an adapter": Row("generate {base} --prompt x --adapter {bad}/empty", "empty: is not a run folder .it holds no recipe.toml"),
    "nothing to draw from": Row("generate {bad}/none --prompt x", "there is no such run folder or base"),
    "nothing to draw": Row("generate {base}", "is a base, and no prompt was given"),
    "captions by no model": Row("caption {pictures} --model {bad}/empty --out {bad}/c.jsonl", "empty"),
}  # fmt: skip

RUNS = {
    "run folder in use": Row("train {pictures} --recipe demo --run {bad}/full", "full: is not empty.* Name another folder with --run"),
    "run folder is a file": Row("train {pictures} --recipe demo --run {bad}/full/something.txt", "something.txt: is a file, and a run is a folder. Name another with --run"),
    "run folder under a file": Row("train {pictures} --recipe demo --run {bad}/full/something.txt/run", "cannot be written .Not a directory.. Name another"),
    "demo folder in use": Row("demo --run {bad}/full", "full: is not empty"),
    "demo folder under a file": Row("demo --run {bad}/full/something.txt/run", "cannot be written .Not a directory"),
    "resume of nothing": Row("train --resume {bad}/none", "is not a run folder .there is no such folder"),
    "resume of what is no run": Row("train --resume {bad}/empty", "is not a run folder .it holds no recipe.toml"),
    "resume of half a folder": Row("train --resume {bad}/untrained", "provenance.json: is missing"),
    "resume with a setting that is none": Row("train --resume {bad}/untrained stepps=4", r"stepps is not a setting. Did you mean steps\?"),
    "resume with a change that is no yes": Row("train --resume {bad}/untrained accept_dataset_change=maybe", "accept_dataset_change='maybe': is not allowed. Use true"),
    "distilling of no base": Row("distill {bad}/none distill.words=['dog']", "there is no such run folder or base"),
    "distilling of nothing": Row("distill distill.images=3", "distill: no base or run was given"),
    "measuring of no run": Row("measure {bad}/none", "none: is not a run folder"),
    "measuring of nothing": Row("measure seconds=5", "measure: no run was given. Name a run's folder"),
    "measuring before the training": Row("measure {bad}/untrained", "has no adapter yet. Train it first"),
    "measuring of a damaged adapter": Row("measure {bad}/torn", "adapter.safetensors: is not a readable safetensors file"),
    "measuring a run twice": Row("measure {bad}/torn {bad}/torn", "torn: is named twice"),
    "measuring for no time": Row("measure {bad}/torn seconds=0", "seconds=0: is not allowed .*greater than 0.* Write inference_steps="),
    "measuring in no steps": Row("measure {bad}/torn inference_steps=[0]", r"inference_steps=\[0\]: is not allowed .*greater than or equal to 1"),
    "measuring with words for numbers": Row("measure {bad}/torn batches=many", "batches='many': is not allowed .*a list of numbers"),
    "measuring with settings of training": Row("measure {bad}/torn adapter.rank=4", "adapter.rank: has no effect on measuring .besides inference_steps, batches, seconds."),
    "report of no run": Row("report {bad}/none", "is not a run folder"),
    "report before the scores": Row("report {bad}/untrained", "untrained.*(evaluate|adapter)"),
    "report into a folder": Row("report {bad}/untrained --out {bad}/empty", "empty: is a folder. Name the file"),
    "scores of no run": Row("evaluate {bad}/empty", "is not a run folder"),
    "scores before the training": Row("evaluate {bad}/untrained", "has no adapter yet. Train it first"),
    "pictures before the training": Row("generate {bad}/untrained --prompt x", "has no adapter yet. Train it first"),
    "a damaged adapter in a run": Row("generate {bad}/torn --prompt x", "adapter.safetensors: is not a readable .?safetensors file"),
    "scores of a damaged adapter": Row("evaluate {bad}/torn", "adapter.safetensors: is not a readable .?safetensors file"),
    "pictures under a file": Row("generate {base} --prompt x --out {bad}/full/something.txt/x", "cannot be made, because .*something.txt is a file"),
    "pictures into a file": Row("generate {base} --prompt x --out {bad}/full/something.txt", "cannot be made, because .*something.txt is a file"),
    "report under a file": Row("report {bad}/untrained --out {bad}/full/something.txt/page.html", "because .*something.txt is a file. Name another"),
    "captions under a file": Row("caption {pictures} --model {bad}/empty --out {bad}/full/something.txt/c.jsonl", "something.txt is a file"),
    "a damaged recipe in a run": Row("generate {bad}/damaged --prompt x", "recipe.toml: is not readable TOML"),
}  # fmt: skip

COMPARISONS = {
    "comparison of nothing": Row("compare", "compare: no pictures. Give the folder of one subject, or .*--subjects"),
    "one subject and many": Row("compare {pictures} --subjects {bad}/outer", "pictures of one subject were given"),
    "subjects that are not there": Row("compare --subjects {bad}/none", "--subjects .*none: there is no such folder"),
    "subjects without folders": Row("compare --subjects {bad}/empty", "--subjects .*empty: has no sub-folders. .*'sks dog'"),
    "arm that is no recipe": Row("compare {pictures} --arms base,lorra base={base}", "arm lorra: recipe 'lorra': there is no such recipe or file. Did you mean lora"),
    "arms that are none": Row("compare {pictures} --arms base", "--arms base: names nothing but the base"),
    "arm that is named twice": Row("compare {pictures} --arms lora,lora", "lora is named twice"),
    "arm with half a bracket": Row("compare {pictures} --arms lora[steps=4", "has half a pair of brackets. Write NAME"),
    "arm with a setting that is none": Row("compare {pictures} --arms lora[adapter.rnk=4] base={base}", r"arm lora.adapter.rnk=4.: .*adapter.rnk is not a setting. Did you mean adapter.rank\?"),
    "setting that one arm cannot have": Row("compare {pictures} --arms lora,dreambooth adapter.rank=4 pictures.class_noun=dog base={base}", "arm dreambooth: .*adapter.rank has no meaning .*Or give it to the arms that have it"),
    "setting without effect in any arm": Row("compare {pictures} --arms lora prior.count=4 pictures.class_noun=dog base={base}", "prior.count: has no effect in any arm"),
    "arms that are no class": Row("compare {pictures} --arms lora base={base}", "arm lora: pictures.class_noun: is not set"),
    "seed as a setting": Row("compare {pictures} --arms lora seed=4", "seed: is no setting of a comparison. Give the training seeds with --seeds"),
    "seed twice": Row("compare {pictures} --arms lora --seeds 1,1", "--seeds 1,1: names a seed twice"),
    "budget that is none": Row("compare {pictures} --arms lora budget=watts", "budget=watts: is not a budget. Use steps, time, memory"),
    "budget without an amount": Row("compare {pictures} --arms lora budget=time", "budget=time: needs to know how much. .*seconds=600"),
    "arm beside the budget": Row("compare {pictures} --arms lora[steps=9] budget=steps steps=4", "sets steps, and budget=steps makes it equal for all"),
    "time that is over at once": Row("compare {pictures} --arms lora pictures.class_noun=dog base={base} budget=time seconds=1e-6 --run {bad}/new", "arm lora, budget=time: the time is over before the first step: .*Give more seconds"),
    "comparison of broken pictures": Row("compare {bad}/broken --arms lora pictures.class_noun=dog base={base}", r"(?s)broken, arm lora: 2 of 3 pictures cannot be used.*torn.png", lines=4),
    "comparison on no base": Row("compare {pictures} --arms lora pictures.class_noun=dog base=./nowhere", "base='./nowhere': there is no such folder or file"),
    "comparison that does not fit": Row("compare {pictures} --arms lora pictures.class_noun=dog base={base} budget=memory fit=0.1GB", "critter, arm lora: needs about .*fit=0.1GB allows"),
    "comparison in a folder in use": Row("compare {pictures} --arms lora --run {bad}/full", "full: is not empty, and is no comparison"),
    "comparison under a file": Row("compare {pictures} --arms lora pictures.class_noun=dog base={base} --run {bad}/full/something.txt/x", "cannot be written .Not a directory"),
}  # fmt: skip

MANY = {
    "many that are not there": Row("train --subjects {bad}/none base={base}", "--subjects .*none: there is no such folder. Name a folder of subjects' folders"),
    "many without folders": Row("train --subjects {bad}/empty base={base}", "--subjects .*empty: has no sub-folders"),
    "many beside pictures": Row("train {pictures} --subjects {bad}/outer", "--subjects .*outer: takes no pictures"),
    "many with class pictures": Row("train --subjects {bad}/outer --class-pictures {pictures}", "takes no --class-pictures"),
    "many and resume": Row("train --resume {bad}/untrained --subjects {bad}/outer", "takes no --subjects"),
    "one trigger begins like another": Row("train --subjects {bad}/alike base={base}", "Subjects 'ann dog' and 'anna cat': trigger 'ann' is a prefix of the other. Choose another"),
    "a subject without pictures": Row("train --subjects {bad}/hollow base={base}", "No pictures in .*hollow/bob cat .it is empty.. Put at least one"),
    "a picture of two subjects": Row("train --subjects {bad}/twice base={base} steps=2", "(?s)1 pictures are in two subjects:.*ann dog/1.png  and  bob dog/1.png", lines=3),
    "variants from nowhere": Row("train {pictures} --variants {bad}/none.csv", "--variants .*none.csv: there is no such file. Name a .csv or .toml file, or a grid such as"),
    "variants and subjects": Row("train --variants seed=0,1 --subjects {bad}/outer", "--subjects and --variants: one of them says who trains"),
    "variants with class pictures": Row("train {pictures} --variants seed=0,1 --class-pictures {pictures}", "takes no --class-pictures"),
    "variants and resume": Row("train --resume {bad}/untrained --variants seed=0,1", "takes no --variants"),
    "a grid of no pictures": Row("train --variants seed=0,1 base={base}", "--variants: no pictures were given. Name the folder"),
    "a grid of what slots share": Row(["train", "{pictures}", "--variants", "base=tiny,tiny-xl"], r"--variants: base is the same for all slots of one batch. They may differ in steps, .*, evaluation\.\*. Give it once"),
    "variants of whole models": Row(DEMO + " --variants seed=0,1 adapter.kind=full prior.enabled=false", "adapter.kind=full: is trained one run at a time"),
    "a grid and the same for all": Row([*DEMO.split(), "--variants", "seed=0,1", "seed=3"], "--variants seed=0: seed is there, and seed=3 is given to all"),
    "a token for many": Row("train --subjects {bad}/twice pictures.token=sks", "pictures.token: has no effect with --subjects. Each folder's name gives it"),
    "whole models of many": Row("train --subjects {bad}/twice --recipe dreambooth base={base}", "adapter.kind=full: is trained one run at a time"),
    "few steps of many": Row("train --subjects {bad}/twice --recipe few-step base={base}", "objective.kind=consistency: teaches few steps"),
    "no slots": Row("train --subjects {bad}/twice base={base} slots=0", "slots=0: is no number of runs. Use 1 or more"),
    "many whose pictures are all broken": Row("train --subjects {bad}/spoilt base={base} steps=2", "(?s)ann dog: 1 of 1 pictures cannot be used:.*torn.png", lines=3),
    "a misspelt setting for many": Row("train --subjects {bad}/twice base={base} adapter.rnk=2", r"Did you mean adapter.rank\?"),
}  # fmt: skip

SWEEPS = {
    "a sweep of nothing": Row("sweep", "Missing argument"),
    "a sweep of no pictures": Row("sweep adapter.rank=4,8", "sweep: no pictures were given. Name the folder"),
    "a sweep of one value": Row("sweep {pictures} adapter.rank=4", "sweep: no setting has several values. Write them with commas: adapter.rank=4,8,16"),
    "a sweep of an empty value": Row("sweep {pictures} adapter.rank=4,,8", "sweep: adapter.rank=4,,8 has a value twice, or an empty one"),
    "a sweep of what is judged": Row("sweep {pictures} pictures.token=sks,ohwx", "sweep: variants cannot differ in pictures.token. Variants are judged on the same prompts. Give it one value"),
    "a sweep of what slots share": Row("sweep {pictures} base=tiny,tiny-xl", "sweep: base is the same for all slots of one batch. They may differ in steps"),
    "a sweep of words for numbers": Row("sweep {pictures} --recipe demo base={base} adapter.rank=4,ten", "adapter.rank = 'ten' is not allowed"),
    "a sweep of a misspelt setting": Row("sweep {pictures} adapter.rnk=4,8", r"sweep: 'adapter.rnk' is no setting.*Did you mean adapter.rank\?"),
    "a sweep chosen by its loss": Row("sweep {pictures} --recipe demo base={base} adapter.rank=4,8 checkpoint.choose=loss", "checkpoint.choose=loss: variants are judged by their pictures. Use last or evidence"),
    "a sweep of whole models": Row("sweep {pictures} --recipe dreambooth base={base} seed=0,1 pictures.class_noun=dog", "adapter.kind=full: is trained one run at a time"),
    "a sweep in a folder in use": Row("sweep {pictures} adapter.rank=4,8 --run {bad}/full", "full: is not empty, and is no sweep. Name another with --run"),
    "a sweep on a file": Row("sweep {pictures} adapter.rank=4,8 --run {bad}/full/something.txt", "is a file, and a sweep is a folder"),
}  # fmt: skip

MACHINES = {
    "no GPU": Row(DEMO + " device=cuda", "device='cuda': torch finds no CUDA GPU. Use device=auto or device=cpu"),
    "no eighth GPU": Row(DEMO + " device=cuda:7", "device='cuda:7': torch finds no CUDA GPU|there is no such device"),
    "no Apple GPU": Row(DEMO + " device=mps", "device='mps': torch finds no Apple GPU"),
    "no such device": Row(DEMO + " device=gpu", "device='gpu': is not a device. Use auto, cpu, cuda"),
    "second CPU": Row(DEMO + " device=cpu:3", "device='cpu:3': there is no such device"),
    "half precision on the CPU": Row(DEMO + " precision=float16", "the CPU has no fast float16. Use float32 or bfloat16"),
    "a graph without a GPU": Row(DEMO + " fast=graph", "fast='graph': needs an NVIDIA GPU, and this run computes on cpu. Leave it out"),
    "a graph of DreamBooth": Row("plan {pictures} --recipe dreambooth pictures.class_noun=dog device=cuda fast=graph", "and this recipe has adapter.kind=full"),
    "no compiler": Row(DEMO + " fast=compile", "fast='compile': needs a C\\+\\+ compiler, and none of g\\+\\+", {"PATH": "", "CXX": ""}),
    "drawing on no GPU": Row("generate {base} --prompt x device=cuda", "torch finds no CUDA GPU"),
    "compiling without a compiler": Row("generate {base} --live --prompt x fast=compile", r"fast='compile': needs a C\+\+ compiler, and none of g\+\+, clang\+\+, c\+\+ is installed", {"PATH": "{bad}", "CXX": ""}),
    "cache in a file": Row(DEMO, "cache: cannot be written .Not a directory.. .* LIMNER_CACHE", {"LIMNER_CACHE": "{bad}/full/something.txt/cache"}),
    "listing a cache in a file": Row("cache ls", "LIMNER_CACHE", {"LIMNER_CACHE": "{bad}/full/something.txt"}),
}  # fmt: skip

SHARED = {name: Row(words, message) for name, (words, message) in (SHARING | COMBINING | DECODERS).items()}
ROWS = (
    FLAGS
    | SETTINGS
    | VALIDATIONS
    | REFINERS
    | DECODERS
    | RECIPES
    | FILES
    | RUNS
    | COMPARISONS
    | MANY
    | SWEEPS
    | SHARED
    | MACHINES
)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Make folders and files that cannot be used."""
    for name in ("empty", "broken", "full", "outer/inner", "captioned", "untrained", "damaged", "torn"):
        (tmp_path / name).mkdir(parents=True)
    whole = (PICTURES / "1.png").read_bytes()
    Image.new("RGB", (64, 64)).save(tmp_path / "broken" / "good.png")
    (tmp_path / "broken" / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "broken" / "nothing.jpg").touch()
    (tmp_path / "full" / "something.txt").write_text("mine")
    (tmp_path / "outer" / "inner" / "1.png").write_bytes(whole)
    for number in "12":
        (tmp_path / "captioned" / f"{number}.png").write_bytes((PICTURES / f"{number}.png").read_bytes())
    (tmp_path / "captioned" / "1.txt").write_text("a caption")
    (tmp_path / "short.toml").write_text('pictures.class_noun = "dog"\n')
    (tmp_path / "broken.toml").write_text("batch = 1\nsteps = \n")
    (tmp_path / "wrong.toml").write_text("steps = 3\n[adapter]\nrnk = 3\n")
    (tmp_path / "latin.toml").write_bytes('base = "h\xfcbsch"\n'.encode("latin-1"))
    (tmp_path / "nothing.safetensors").write_bytes(b"nothing")
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02}q\x00.")
    pair = {"lora_A": torch.zeros(2, 32), "lora_B": torch.zeros(32, 2)}
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.{name}.weight": tensor for name, tensor in pair.items()}, tmp_path / "lora.safetensors")
    make_bad_loras(tmp_path)
    make_bad_subjects(tmp_path, whole)
    save_recipe(load_recipe("demo"), tmp_path / "untrained" / "recipe.toml")
    (tmp_path / "damaged" / "recipe.toml").write_text("steps = \n")
    save_recipe(load_recipe("demo"), tmp_path / "torn" / "recipe.toml")
    (tmp_path / "torn" / "adapter.safetensors").write_bytes(b"nothing")
    return tmp_path


def make_bad_subjects(place: Path, whole: bytes) -> None:
    """Make folders of subjects that cannot be trained together; an empty name makes no picture."""
    for path in ("alike/ann dog/1.png", "alike/anna cat/2.png", "hollow/ann dog/1.png", "hollow/bob cat/",
                 "twice/ann dog/1.png", "twice/bob dog/1.png", "spoilt/ann dog/torn.png"):  # fmt: skip
        folder, _, name = path.rpartition("/")
        (place / folder).mkdir(parents=True, exist_ok=True)
        if name:
            (place / path).write_bytes(whole[:20] if name == "torn.png" else whole)


@pytest.fixture(scope="session")
def bases(random_base: Path, random_xl: Path, random_refiner: Path) -> dict[str, Path]:
    """Return good bases by the name that the rows have for them."""
    return {"base": random_base, "xl": random_xl, "refiner": random_refiner}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_bad_input_is_one_line_and_exit_code_2(
    run_limner: Callable[..., Result], bases: dict[str, Path], bad: Path, row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(text: str) -> str:
        return text.format(bad=bad, pictures=PICTURES, **bases)

    words = [fill(w) for w in (row.words.split() if isinstance(row.words, str) else row.words)]
    for name, value in row.environment.items():
        monkeypatch.setenv(name, fill(value))
    monkeypatch.chdir(bad)
    there = sorted(bad.rglob("*"))
    run = ["--run", str(bad / "new")] if words[0] == "train" and not {"--run", "--resume"} & {*words} else []
    silent = ["--json"] if words[0] not in ("trane", "explain") and words[-1] != "--recipe" else []
    code, out, err = run_limner(words[0], *run, *words[1:], *silent)
    assert code == 2, err
    assert re.search(row.message, err), err
    assert "Traceback" not in err
    assert out == ""
    assert len(err.strip().splitlines()) == row.lines, err
    assert sorted(bad.rglob("*")) == there, "something half-made was left"


def test_the_table_is_long_enough_and_covers_every_verb() -> None:
    from limner.cli import app

    verbs = {command.name or str(getattr(command.callback, "__name__", "")) for command in app.registered_commands}
    tried = {(row.words.split() if isinstance(row.words, str) else row.words)[0] for row in ROWS.values()}
    assert len(ROWS) >= 60
    assert verbs - tried <= {"doctor"}, "no bad input of these verbs is tried"
