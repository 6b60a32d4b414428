"""Stage: a run folder becomes report.html, one file that needs no network."""
