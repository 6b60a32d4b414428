"""Everything that made the embedded base `tiny`: data set, encoders, VAE, UNet, judges, results."""
