"""The one tree of settings, and the unions that list every member of each axis."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from limner.adapters.full import Full
from limner.adapters.lora import TARGETS, LoRA
from limner.adapters.peft import METHODS, Peft
from limner.adapters.peft_layers import MOVES_BASE
from limner.adapters.pivotal import Pivotal
from limner.adapters.textual_inversion import TextualInversion
from limner.families.storage import BaseStorage
from limner.generate.draw import Request, Sampling
from limner.generate.few_steps import Distill, FewSteps
from limner.generate.prompts import Evaluation, Validation
from limner.machine import Precision
from limner.objectives import Consistency, Denoising
from limner.pictures.spec import Pictures, Prior
from limner.spec import Spec
from limner.train.average import Ema
from limner.train.optimizer import Adafactor, AdamW, AdamW8bit, Lion, Prodigy, ScheduleFree
from limner.train.trackers import Tracker

# Every member of each axis; a second member makes the alias a union discriminated by `kind`.
Adapter = Annotated[LoRA | Full | TextualInversion | Pivotal | Peft, Field(discriminator="kind")]
Objective = Annotated[Denoising | Consistency, Field(discriminator="kind")]
Optimizer = Annotated[AdamW | AdamW8bit | Adafactor | Prodigy | ScheduleFree | Lion, Field(discriminator="kind")]

LENGTHS = {"steps", "epochs", "exposures"}


class Checkpoint(Spec):
    """When the state of the run is kept, so that it can be continued."""

    every_steps: int = Field(default=100, ge=0)
    """Steps between checkpoints; 0 keeps only the one at the end or at Ctrl-C."""
    keep: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay on disk."""
    choose: Literal["last", "loss", "evidence"] = "last"
    """Which step's weights the result is made of. "last": the last one's. "evidence": those of the step after which
    likeness grows no more on the pictures of `validation`; of a few-step run, of the one that comes nearest to the
    base's many-step pictures. "loss": those of the checkpoint with the lowest loss on the held-out pictures
    (`evaluation.pictures`), always with the same noise at the same timesteps. Its checkpoint stays on disk beside the
    newest; nothing changes in the training."""

    @model_validator(mode="before")
    @classmethod
    def _as_before(cls, given: Any) -> Any:
        """Read `keep_best` and `use`, which were there before `choose`."""
        if not isinstance(given, dict) or not {"keep_best", "use"} & given.keys():
            return given
        own = {key: value for key, value in cast(dict[str, Any], given).items() if key not in ("keep_best", "use")}
        return {"choose": "loss" if given.get("use") == "best" else "last", **own}


class Preview(Spec):
    """Pictures drawn during training, to watch the subject appear."""

    every_steps: int = Field(default=0, ge=0)
    """Steps between previews; 0 draws none."""
    prompt: str = "a photo of {subject}"
    """What to draw; "{subject}" becomes the token and the class noun."""
    images: int = Field(default=4, ge=1)
    """Pictures per preview."""
    decoder: str = ""
    """A small decoder for previews and live pictures (`limner generate --live`), faster than the VAE: a hub name
    ("madebyollin/taesd" for SD 1.5, "madebyollin/taesdxl" for SDXL) or a folder of diffusers' AutoencoderTiny. The VAE
    decodes all other pictures, and with "" these too."""


class Recipe(Spec):
    """Everything that decides a run. What most people set stands at the top, the rest in sections."""

    base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """The frozen model: "tiny" (embedded), a hub name, a diffusers folder, or a .safetensors file."""
    steps: int | None = Field(default=None, ge=1)
    """Length of the run in updates of the adapter. Give one of `steps`, `epochs`, `exposures`; the rest follows."""
    epochs: float | None = Field(default=None, gt=0)
    """Length of the run in passes over the subject's pictures, repeats counted."""
    exposures: float | None = Field(default=None, gt=0)
    """Length of the run in times that each picture of the subject is seen, on average."""
    batch: int = Field(default=1, ge=1)
    """Subject pictures per step; with prior preservation as many class pictures come on top."""
    accumulate: int = Field(default=1, ge=1)
    """Batches per step: their gradients are averaged before the update, as one batch of `batch` x `accumulate` does."""
    gradient_checkpointing: bool | Annotated[float, Field(gt=0, lt=1)] = False
    """Compute the UNet's inner values twice instead of keeping them: less memory, a third more time. A share such as
    0.33 does so in a third of its blocks, those with the largest pictures first."""
    unload: bool | Literal["auto"] = "auto"
    """While training, give back the memory of the VAE and of text encoders that do not learn; changes no result. "auto"
    does so where nothing needs them again: no picture between the steps, no whole model to save, no other subject."""
    base_storage: BaseStorage = "as_computed"
    """How the frozen base lies in memory while an adapter learns on it: "as_computed" in `precision`; "int8" or
    "float8" in one byte for each weight and "nf4" in half a byte, each brought to `precision` where it acts. Pictures
    of the comparison are drawn with the base as it is."""
    offload: bool = False
    """Keep the frozen base's layers in the host's memory while an adapter learns, and bring each to the GPU for as long
    as it acts: less of the GPU's memory, more time; changes no result."""
    fit: bool | str = False
    """Make the run fit: true for the memory that is free on the device, or an amount such as "8GB". What it takes is
    said and written into the run's recipe; see `limner plan`. "off" runs without asking whether it fits."""
    resolution: int = Field(default=0, ge=0)
    """Side of the training pictures in pixels; 0 takes the base's own."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """How far each step goes. 1e-4 for LoRA on SD 1.5; the embedded base likes 2e-3."""
    seed: int = 0
    """Every random draw of the run follows from it."""
    precision: Precision = "auto"
    """Number format of the frozen base; what learns is always float32."""
    device: str = "auto"
    """Where to compute: "auto", "cuda", "cuda:1", "mps", "cpu"."""
    deterministic: bool = False
    """Take only kernels that give the same bits every time. On a CPU they all do; on a GPU training gets slower."""
    fast: Literal["off", "graph", "compile", "graph+compile"] = "off"
    """Take the same steps sooner. "graph" records a whole step and launches it at once (NVIDIA GPU, LoRA with AdamW);
    "compile" fuses the UNet's small operations, after minutes of compiling that later runs are spared; live drawing
    heeds it too."""
    init_from: str | None = None
    """Begin with the weights of this run, or of this LoRA or embedding file, instead of new ones."""
    tracking: tuple[Tracker, ...] = ()
    """Programs that are told each step and shown the previews: ["tensorboard"] (in the run folder), ["wandb"] ..."""
    adapter: Adapter = LoRA()
    """Which parameters learn."""
    objective: Objective = Denoising()
    """What is minimised."""
    pictures: Pictures = Pictures()
    """The subject's pictures and their captions."""
    prior: Prior = Prior()
    """Prior preservation: class pictures that keep the class what it was (arXiv:2208.12242)."""
    distill: Distill = Distill()
    """Few steps (objective.kind=consistency): what stays attached while it is learned, and what the base draws."""
    optimizer: Optimizer = AdamW()
    """How weights follow gradients."""
    ema: Ema = Ema()
    """A moving average of what learns, in the place of its last values."""
    generation: Sampling = Sampling()
    """How pictures are drawn: class pictures, previews, both sides of the comparison."""
    checkpoint: Checkpoint = Checkpoint()
    """When the run's state is kept."""
    preview: Preview = Preview()
    """Pictures during training."""
    validation: Validation = Validation()
    """Pictures that are judged during training."""
    evaluation: Evaluation = Evaluation()
    """What is drawn for the comparison."""

    @property
    def draws_while_training(self) -> bool:
        """Tell whether pictures are drawn between the steps."""
        return bool(self.preview.every_steps or self.validation.every_steps)

    def puts_aside(self, *, alone: bool) -> bool:
        """Tell whether parts that do not learn give their memory back; `alone`: nothing else trains on this base."""
        if self.unload == "auto":
            return alone and not (self.draws_while_training or isinstance(self.adapter, Full))
        return self.unload

    def encodes_first(self, class_pictures: bool) -> bool:
        """Tell whether pictures are encoded before the UNet does anything; `class_pictures`: they need not be drawn."""
        return (class_pictures or not self.prior.active) and self.distill.adapter is None

    @property
    def may_need_text_encoders(self) -> bool:
        """Tell whether text encoders may be asked for when captions are encoded: they learn, or the base teaches."""
        own = self.adapter
        if self.objective.needs_base or not isinstance(own, LoRA | Peft | Full) or own.text_encoder:
            return True
        return not isinstance(own, Full) and not (isinstance(own.targets, str) and own.targets in TARGETS)

    @property
    def validation_requests(self) -> list[Request]:
        """Return every picture to draw at a validation; what is made for a class is left out where none is named."""
        own = self.pictures
        is_nameless = self.learns_few_steps and not own.token
        return self.validation.requests(own.token, own.class_noun or ("" if is_nameless else "picture"))

    @property
    def has_subject(self) -> bool:
        """Tell whether a subject is learned, or stays attached: a few-step adapter may be of the base alone."""
        return not self.learns_few_steps or self.distill.adapter is not None

    @property
    def only_reads_base(self) -> bool:
        """Tell whether the base's weights stay as they are: none learns, and no adapter takes its start out of them."""
        own = self.adapter
        takes = isinstance(own, Peft) and METHODS[own.method].fixed.get("init_lora_weights") in MOVES_BASE
        return not (isinstance(own, Full) or takes)

    @property
    def learns_few_steps(self) -> bool:
        """Tell whether what is trained is a few-step adapter."""
        return isinstance(self.objective, Consistency)

    @property
    def few_steps(self) -> FewSteps | None:
        """Return how what is trained is drawn with, where that is a few-step adapter."""
        own = self.objective
        return self.distill.few_steps(own.phases) if isinstance(own, Consistency) else None

    @property
    def drawn_with(self) -> Sampling:
        """Return how pictures are drawn with what is trained; without it they are drawn as `generation` says."""
        return self.few_steps.sampling(self.generation) if self.few_steps else self.generation


def members_of(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return the members of an axis by their kind; nothing where a field is no union."""
    members = get_args(field.annotation) if field.discriminator else ()
    return {member.model_fields["kind"].default: member for member in members}


UNIONS = {name: members for name, field in Recipe.model_fields.items() if (members := members_of(field))}
"""The axes that have several members, by their section of the recipe: kind -> member."""
