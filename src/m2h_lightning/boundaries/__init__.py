"""Boundary maps and their matching, as the SEISM and BSDS benchmarks define them. NumPy and SciPy, no torch.

Apart from ``metrics`` so that the processes that match boundaries need not import torch.
"""
