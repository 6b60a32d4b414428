"""Bad input of live drawing and previews: small decoders that are none, and compiling where nothing is compiled.

A row is a name, the words of the command line, and what the line has to say; see `test_bad_input.py`.
"""

from __future__ import annotations

DEMO = "train {pictures} --recipe demo base={base}"
DECODED = DEMO + " steps=2 preview.every_steps=1 preview.decoder="
DECODERS = {
    "decoder that is not there": (DECODED + "./nowhere", "preview.decoder='./nowhere': there is no such folder, and it is no hub name"),
    "decoder that is not downloaded": (DECODED + "somebody/decoder", "preview.decoder='somebody/decoder': is not on this machine .*switched off.* Put its config.json and"),
    "decoder of other latents": (DECODED + "madebyollin/taesd", r"is for the latents of SD 1.x, and base=.* has others \(4 channels, 4 px\)"),
    "base for a decoder": (DECODED + "{base}", "preview.decoder=.*has no config.json, and a small decoder is a folder with"),
    "VAE for a decoder": (DECODED + "{base}/vae", "preview.decoder=.*: is AutoencoderKL, and a small decoder is AutoencoderTiny"),
    "file for a decoder": (DECODED + "{bad}/lora.safetensors", "preview.decoder=.*: is a file, and a small decoder is a folder"),
    "decoder without previews": (DEMO + " preview.decoder={base}", "preview.decoder: has no effect, because preview.every_steps is 0"),
    "decoder for pictures that stay": ("generate {base} --prompt x preview.decoder={base}", "preview.decoder: has no effect on pictures that stay.*or draw with --live"),
    "live drawing that is recorded": ("generate {base} --live --prompt x fast=graph", "live drawing can only be compiled. Set fast=compile"),
    "compiling pictures that stay": ("generate {base} --prompt x fast=compile", "fast: has no effect on drawing"),
    "live by no decoder": ("generate {base} --live --prompt x preview.decoder={base}", "preview.decoder=.*has no config.json"),
}  # fmt: skip
