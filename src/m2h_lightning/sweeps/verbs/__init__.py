"""The verbs of ``m2h sweep``, one file each."""
