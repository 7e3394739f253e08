"""Ablations and searches: one file, many runs, one process each; what is done is never done twice. Loads no torch."""
