"""Tables of runs, beside the published ones."""
