"""Which parameters learn, and how they are attached, detached and saved."""
