"""Δm, the mean relative gain over single-task networks; its code loads no torch and lies in ``m2h_lightning.delta``."""

from m2h_lightning.delta import DeltaM, delta_m

__all__ = ["DeltaM", "delta_m"]
