"""The run folder: its files, the loggers that write into it, atomic checkpoints."""
