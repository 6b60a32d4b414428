"""Stage: folders of images become scores: metrics, protocol, statistics."""
