"""Which weights, encoders and conditioning, and how each is loaded."""
