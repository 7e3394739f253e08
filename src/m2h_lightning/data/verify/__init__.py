"""``m2h data verify``: look at every sample of a data set and say what is wrong. Loads no torch.

``one_sample`` looks at a sample and returns small tallies (``maps``, ``labels``, ``depths``, ``axes_search``,
``flatness``, ``edge_agreement``); ``scan`` does so in several processes and adds them up; each tally's module judges
its sum. ``listing`` and ``orphans`` need no pixel. ``report`` and ``contact_sheet`` show what was found.
"""

from m2h_lightning.data.verify.command import main_verify

__all__ = ["main_verify"]
