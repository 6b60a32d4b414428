"""Stage: the loop, an iterator of steps; optimizer, checkpoint and resume."""
