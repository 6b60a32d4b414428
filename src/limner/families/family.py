"""What a model family must offer to the stages; `sd15.py` and `sdxl.py` are its members."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limner.errors import UserError
from limner.families.attention import attend_faster
from limner.families.clip import Encoder
from limner.families.frozen import keep_less
from limner.families.recognise import size_step_px
from limner.families.storage import BaseStorage, give
from limner.families.weights import fill
from limner.machine import return_freed_memory
from limner.schedule import PredictionType, Schedule
from limner.types import Conditioning, Latents, Moments, Pixels, Timesteps

PIXELS_TOGETHER = 256 * 256
"""How many pixels a VAE encodes or decodes at once: one picture of 256 × 256, which keeps a processor busy."""

ReadPart = Callable[[str], Mapping[str, Tensor]]
"""Returns the weights of a part ("vae", "text_encoder" ...) by their names, as they are in the base's files."""


class Family(ABC):
    """A loaded base: frozen weights with the things that a stage may ask of them.

    Every module is frozen and in eval mode; adapters add what learns. A member says how the UNet is told of a prompt.
    """

    kind: str
    """The family's name in files: "sd15", "sdxl" ..."""
    before_last: ClassVar[bool]
    """Which states of its text encoders the UNet sees; see `Encoder`."""

    def __init__(self, name: str, components: Mapping[str, Any], read: ReadPart, unread: Collection[str] = ()) -> None:
        self.name = name
        """What the user called it: "tiny", a hub name, a path."""
        self.identity: dict[str, str] = {}
        """SHA-256 (16 hex digits) of the weights of "unet", "vae", "text": keys of caches and provenance."""
        self.storage: BaseStorage = "as_computed"
        """How the frozen layers' weights lie in memory."""
        self.unet: Any = components["unet"]
        """A UNet2DConditionModel. It, the encoders and the VAE are modules whose `config` has no type to say here."""
        self.vae: Any = components["vae"]
        self.encoders = {
            part: Encoder(model, components[part.replace("text_encoder", "tokenizer")], self.before_last)
            for part, model in components.items()
            if part.startswith("text_encoder")
        }
        """The text encoders by the name they carry in folders and adapter files."""
        self._read, self._aside, self._unread = read, set(unread), set(unread)
        for module in self.parts.values():
            module.requires_grad_(False).eval()
        keep_less(self.unet)
        for module in (self.unet, self.vae):
            attend_faster(module)
        for layer in self.vae.modules():
            if type(layer) is nn.SiLU:
                layer.inplace = True  # what it reads has just been normalised, and nobody reads it again
        self.dtype: torch.dtype = next(iter(self.encoders.values())).model.dtype
        """Number format in which the base computes."""
        if self.vae.dtype != self.dtype:  # float32 beside a half: pictures beyond the VAE's own size pass it in tiles
            self.vae.enable_tiling()
        self.is_shared = False
        """Whether several trainings are on it, so that one of them may need what another does not."""
        self.placeholders: dict[str, range] = {}
        """Words of prompts that stand for learned vectors, each with the numbers of its vectors; see `tokens`."""
        self.refiner: Family | None = None
        """Another model that finishes the pictures that this one begins: SDXL's refiner."""
        self.begun_by: Family | None = None
        """Another model that begins the pictures that this one, a refiner, finishes."""
        scheduler = components["scheduler"]
        self.schedule = Schedule(scheduler.alphas_cumprod.float(), scheduler.config.prediction_type)
        self.scheduler_config: dict[str, Any] = {**scheduler.config, "_class_name": type(scheduler).__name__}
        """The base's own scheduler settings (betas, prediction type), from which any diffusers scheduler is made."""
        self.native_resolution_px: int = self.unet.config.sample_size * self.pixels_per_latent

    def set_schedule(self, *, prediction_type: PredictionType | None = None, zero_terminal_snr: bool = False) -> None:
        """Train and draw with another prediction type, or with the schedule stretched to pure noise.

        Raises:
            UserError: the last step is to be pure noise, of which an epsilon model cannot say what it hides.
        """
        prediction_type = prediction_type or self.schedule.prediction_type
        if zero_terminal_snr:
            refuse_pure_noise(self.name, prediction_type)
        schedule = self.schedule.rescaled() if zero_terminal_snr else self.schedule
        self.schedule = replace(schedule, prediction_type=prediction_type)
        self.scheduler_config |= {"prediction_type": prediction_type}
        if zero_terminal_snr:  # the sampler has to begin at the last step, where training had pure noise
            self.scheduler_config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that adapters attach to, by the name they carry in adapter files."""
        return {"unet": self.unet, **{part: encoder.model for part, encoder in self.encoders.items()}}

    @property
    def parts(self) -> dict[str, nn.Module]:
        """All modules by their names in a diffusers folder."""
        return {"vae": self.vae, **self.modules}

    @property
    def aside(self) -> frozenset[str]:
        """The parts whose weights are not there at present."""
        return frozenset(self._aside)

    @property
    def unread(self) -> frozenset[str]:
        """Those of them that were never there: `load` has left them for later."""
        return frozenset(self._unread)

    def put_aside(self, *parts: str) -> None:
        """Give back the memory of parts that are not needed for a while."""
        for part in parts:
            for weight in self.parts[part].parameters():
                give(weight, None)
        self._aside.update(parts)
        if parts:
            return_freed_memory()

    def bring_back(self, *parts: str) -> None:
        """Read parts that are not there from the base's files: again, or for the first time."""
        for part in sorted(self.aside.intersection(parts)):
            module, state = self.parts[part], dict(self._read(part))
            if part in self._unread:
                fill(module, state, where=f"base={self.name!r}: {part}")
                module.requires_grad_(False).to(self.device)  # what is no weight too
            else:
                for name, weight in module.named_parameters():
                    give(weight, state[name])
            self._aside.discard(part)
            self._unread.discard(part)

    @contextmanager
    def whole(self, *parts: str) -> Iterator[None]:
        """Within this block all parts are there, or those that are named."""
        aside = self.aside.intersection(parts) if parts else self.aside
        self.bring_back(*aside)
        try:
            yield
        finally:
            self.put_aside(*aside)

    def compute_again(self, share: float) -> None:
        """Have a share of the UNet's blocks, the outermost first, compute their inner values again on the way back.

        The outermost blocks have the largest pictures, and so the most to keep.
        """
        down, up = list(self.unet.down_blocks), list(self.unet.up_blocks)[::-1]
        blocks = [block for pair in zip(up, down, strict=True) for block in pair] + [self.unet.mid_block]
        self.unet.enable_gradient_checkpointing(computed_twice)
        for module in (inner for block in blocks[round(share * len(blocks)) :] for inner in block.modules()):
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False

    def twin(self) -> Family:
        """Return a family over the very same weights, in modules of its own: what is attached to one is on it alone."""
        tokenizers = [encoder.tokenizer for family in self.together for encoder in family.encoders.values()]
        return copy.deepcopy(self, {id(one): one for one in (*tokenizers, *self.weights())})

    @property
    def together(self) -> list[Family]:
        """This family, and the model that draws together with it, if there is one."""
        return [family for family in (self, self.refiner, self.begun_by) if family]

    def weights(self) -> list[Tensor]:
        """Return every tensor that drawing with this family needs, each once."""
        modules = [module for family in self.together for module in family.parts.values()]
        return list({id(one): one for m in modules for one in (*m.parameters(), *m.buffers())}.values())

    @property
    def facts(self) -> dict[str, Any]:
        """What every file that is made from this base says of it."""
        return {
            "base": self.name, "family": self.kind, "identity": self.identity,
            "prediction_type": self.schedule.prediction_type, "resolution_px": self.native_resolution_px,
            "layers_per_block": self.unet.config.layers_per_block,
        }  # fmt: skip

    @property
    def size_step_px(self) -> int:
        """Sides of pictures are multiples of it: the UNet halves its latents once per block but the last."""
        return size_step_px(self.unet.config.block_out_channels, self.vae.config.block_out_channels)

    @property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels behind one latent: 8 for SD, 4 for the embedded base."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def casting(self, module: nn.Module) -> torch.autocast:
        """Compute in the base's number format where a module's weights are held in another, because they learn."""
        mixed = next(module.parameters()).dtype != self.dtype
        device = "cpu" if self.device.type == "meta" else self.device.type  # autocast knows no "meta"
        return torch.autocast(device, dtype=self.dtype, enabled=mixed)

    @contextmanager
    def precise_vae(self) -> Iterator[None]:
        """Within this block the VAE computes in float32, as some overflow in float16; its weights come back.

        Pictures larger than those that it was made for pass it in tiles, whose seams are blended.
        """
        held, tiled = self.vae.dtype, self.vae.use_tiling
        self.vae.to(torch.float32)
        self.vae.enable_tiling()
        try:
            yield
        finally:
            self.vae.to(held)
            self.vae.use_tiling = tiled

    @torch.no_grad()
    def encode_pixels(self, pixels: Pixels) -> Moments:
        """Return mean and standard deviation of the VAE's posterior, float32, on the CPU; `pixels` in [-1, 1]."""
        posterior = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1).float().cpu()

    def scale_latents(self, latents: Latents) -> Latents:
        """Return a draw from the moments brought to the UNet's scale (about unit variance)."""
        return (latents - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Latents) -> Pixels:
        """Return pictures in [-1, 1], float32, of latents at the UNet's scale; large ones are decoded one by one."""
        unscaled = latents / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0.0)
        height, width = (side * self.pixels_per_latent for side in latents.shape[-2:])
        parts = unscaled.to(self.vae.dtype).split(rows_together((width, height)))
        return torch.cat([self.vae.decode(part).sample.float().clamp(-1, 1) for part in parts])

    def tokens(self, text: str) -> list[int]:
        """Return a text's token ids, start and end not among them; learned vector k of a placeholder is -(k + 1)."""
        return next(iter(self.encoders.values())).tokens(text, self.placeholders)

    def token_count(self, prompt: str) -> int:
        """Return how many tokens a prompt has, start and end tokens not counted."""
        return len(self.tokens(prompt))

    @property
    def max_tokens(self) -> int:
        """How many tokens of a prompt fit into one window, start and end tokens not counted: 75 for SD."""
        return min(encoder.max_tokens for encoder in self.encoders.values())

    def read(self, prompts: Sequence[str], *, learn: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield what each text encoder makes of the prompts, in the base's number format: hidden states and pooled."""
        for encoder in self.encoders.values():
            with torch.set_grad_enabled(learn), self.casting(encoder.model):
                hidden, pooled = encoder.read([encoder.tokens(prompt, self.placeholders) for prompt in prompts])
            yield hidden.to(self.dtype), None if pooled is None else pooled.to(self.dtype)

    @abstractmethod
    def encode_text(self, prompts: Sequence[str], *, learn: bool = False) -> Conditioning:
        """Return the conditioning of each prompt, on the base's device; with `learn` gradients flow back.

        A prompt past one window is encoded window by window and joined.
        """

    @abstractmethod
    def predict(self, x_t: Latents, t: Timesteps, conditioning: Conditioning) -> Tensor:
        """Return the UNet's prediction for noisy latents at training timesteps `t`."""

    @abstractmethod
    def pipeline(self, scheduler: Any) -> Any:
        """Return the stock diffusers text-to-image pipeline over these very modules."""

    @abstractmethod
    def told(self, prompts: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """Return the arguments by which the pipeline is told of prompts, and of what to avoid, row by row."""


def refuse_pure_noise(name: str, prediction_type: str) -> None:
    """Raise where the last step is to be pure noise and a model predicts epsilon, which does not say what it hides."""
    if prediction_type == "epsilon":
        raise UserError(
            f"objective.zero_terminal_snr=true: {name} predicts epsilon, which says nothing about pure noise.",
            "Use a v-prediction base, or teach it: objective.prediction_type=v_prediction with adapter.kind=full.",
        )


def rows_together(size: tuple[int, int]) -> int:
    """Return how many pictures of a width and height pass a VAE together: small ones keep no processor busy alone."""
    return min(16, max(1, PIXELS_TOGETHER // (size[0] * size[1])))


def computed_twice(module: nn.Module, *inputs: Any) -> Any:
    """Return what a block makes of its inputs, without keeping its inner values; nothing in a UNet draws at random."""
    return checkpoint(module.__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
