"""m2h_lightning: train, ablate, compare and deploy the M2H multi-task dense-prediction network (arXiv 2510.17363)."""

__version__ = "0.1.0"
