"""One small class for each question about images, on shared encoders."""
