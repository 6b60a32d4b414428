"""The same functions under their newer name."""

from torchvision.transforms.functional import InterpolationMode, center_crop, crop, normalize, pil_to_tensor, resize

__all__ = ["InterpolationMode", "center_crop", "crop", "normalize", "pil_to_tensor", "resize"]
