"""Examples on disk: decoding, captions, shapes, and the cache."""
