"""Runs side by side: what they reached, whether they may be compared, and tables of it. Loads no torch."""
