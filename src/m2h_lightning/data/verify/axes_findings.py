"""What the search for axes means for the user."""

from __future__ import annotations

from m2h_lightning.data.sources.axes import parse_axes
from m2h_lightning.data.verify.axes_search import AxesTally, AxesVerdict
from m2h_lightning.data.verify.problems import Finding, some

OUTLIER = 50.0
"""Degrees from which a single sample is named."""

_IDEA_TEXT = {
    "planar": "planar depth z",
    "distance": "the Euclidean distance along the ray",
    "inverse": "inverse depth or disparity",
    "divided": "planar depth that was converted from distance once too often",
}
_IDEA_MEND = {
    "distance": "convert it: z = distance / |K⁻¹[u, v, 1]| with the ray scaled to z = 1",
    "inverse": "convert it: z = 1/value, or baseline·fx/disparity",
    "divided": "take the stored depth as it is",
}


def compose(found: str, used: str) -> str:
    """Return the convention of the stored channels when ``found`` was seen after loading with ``used``."""
    (order, signs), (channels, used_signs) = parse_axes(found), parse_axes(used)
    return ",".join(
        f"{'-' if sign * used_signs[axis] < 0 else ''}{'xyz'[channels[axis]]}"
        for axis, sign in zip(order, signs, strict=True)
    )


def judge_axes(
    tally: AxesTally, verdict: AxesVerdict | None, used: str, derived: str, option: str = "data.normal_axes"
) -> list[Finding]:
    """Turn the search into findings.

    Args:
        tally: Over all samples.
        verdict: From :func:`decide`.
        used: Convention with which the stored normals were loaded.
        derived: How the normals were made from the depth; empty when they are independent of it.
        option: How the axes are set.
    """
    found = []
    wrong_axes = verdict is not None and verdict.state in ("axes", "both", "no fit")

    def say(severity: str, text: str, mend: str = "") -> None:
        found.append(Finding(severity, "axes", text, mend))  # type: ignore[arg-type]

    if tally.no_camera:
        say("note", f"K is not known in {tally.no_camera} sample(s): their normals were not compared with their depth")
    if derived:
        say("note", f"normals are derived, not checked: {derived}")
    elif verdict is None and tally.seen and not tally.no_camera:
        say("note", "no smooth surface with both depth and normals was found: their agreement was not checked")
    if verdict is not None:
        v, state = verdict, verdict.state
        best = f"mean {v.mean:.1f}° instead of {v.identity_mean:.1f}°"
        if state in ("axes", "both"):
            stored = compose(v.convention, used)
            if v.turned:  # to such a reader a convention and its opposite are the same: tell the plainer one
                stored = min(stored, compose("-x,-y,-z", stored), key=lambda axes: axes.count("-"))
            if state == "axes":
                say("problem", f"normals disagree with depth: with {option}='{stored}' they agree ({best})")
            else:
                text = f"with {option}='{stored}' and depth read as {_IDEA_TEXT[v.idea]} they agree ({best})"
                say("problem", f"normals disagree with depth: {text}", _IDEA_MEND[v.idea])
            if v.tied:
                others = some([compose(axes, used) for axes in v.tied])
                say("note", f"too few orientations to decide: {others} fit as well as '{stored}'")
        elif state == "depth":
            say(
                "problem",
                f"depth looks like {_IDEA_TEXT[v.idea]}, not planar depth: normals then agree with it ({best})",
                _IDEA_MEND[v.idea],
            )
        elif state == "no fit":
            say(
                "problem",
                f"normals do not agree with depth under any of the 48 conventions (best mean {v.mean:.1f}°)",
                "do K, depth and normals belong to the same images at the same size?",
            )
        elif state == "facing":
            say("problem", f"some normals are turned away; turned to the camera all of them agree with depth ({best})")
        elif state == "ambiguous":
            others = some([compose(axes, used) for axes in v.tied])
            say(
                "note",
                f"the axes of the normals are not decided: too few orientations to tell '{used}' (mean "
                f"{v.identity_mean:.1f}°) from {others} ({v.runner_up_mean:.1f}°)",
                "look at more samples",
            )
        odd = (
            [id for id, angle in tally.own.items() if angle > OUTLIER]
            if state in ("agree", "ambiguous", "facing")
            else []
        )
        if odd:
            say(
                "warning", f"{len(odd)} sample(s) whose normals disagree with their depth (> {OUTLIER:g}°): {some(odd)}"
            )
    # With wrong axes, where normals face says nothing new.
    return found + judge_length(tally) + ([] if wrong_axes else judge_facing(tally))


def judge_facing(tally: AxesTally) -> list[Finding]:
    """Judge how many normals face away."""
    if not tally.seen or tally.away <= 0.02 * tally.seen:
        return []
    share = tally.away / tally.seen
    return [
        Finding(
            "problem" if share > 0.1 else "warning",
            "facing",
            f"{share:.1%} of the normals face away from the camera (n·ray > 0)",
            "a visible surface faces it: turn them, or look at the axes",
        )
    ]


def judge_length(tally: AxesTally) -> list[Finding]:
    """Judge whether normals are of length one."""
    found = []
    if tally.lengths and tally.not_unit > 0.01 * tally.lengths:
        share = tally.not_unit / tally.lengths
        found.append(
            Finding("warning", "normals", f"{share:.1%} of the normals are not of length one", "normalise them")
        )
    return found
