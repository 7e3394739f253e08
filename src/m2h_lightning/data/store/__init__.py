"""The prepared store: a data set decoded once, read by memory map. NumPy only; loads no torch."""

from m2h_lightning.data.store.reader import PreparedStore, damaged_shards, is_store, open_store

__all__ = ["PreparedStore", "damaged_shards", "is_store", "open_store"]
