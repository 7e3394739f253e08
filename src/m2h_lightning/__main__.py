"""``python -m m2h_lightning`` is the same function as the scripts ``m2h`` and ``lightning``."""

from m2h_lightning.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
