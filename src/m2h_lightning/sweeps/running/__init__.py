"""Cells as processes: workers on this machine, jobs of SLURM."""
