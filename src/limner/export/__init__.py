"""Stage: the adapter as a file that other tools load, read back and verified at every save."""
