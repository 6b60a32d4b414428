"""Stage: scored runs become a page, one file that needs no network."""
