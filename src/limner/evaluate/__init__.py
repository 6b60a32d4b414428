"""Stage: folders of images become scores.json: metrics, protocol, statistics."""
