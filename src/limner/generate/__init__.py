"""Stage: base and adapter, prompts and seeds become a folder of images with a manifest."""
