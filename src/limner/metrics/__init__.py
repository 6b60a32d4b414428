"""Questions about images, and the encoders that answer them."""
