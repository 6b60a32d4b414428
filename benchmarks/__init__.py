"""Side by side with the peers, on the same weights and the same machine; never imported by the package."""
