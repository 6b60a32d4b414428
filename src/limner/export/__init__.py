"""Stage: the adapter, or the whole model, as files that other tools load, read back and verified at every save."""
