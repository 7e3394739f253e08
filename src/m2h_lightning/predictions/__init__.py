"""Predictions as files: how this package writes them, and how it reads its own and everybody else's. Loads no torch."""
