"""What verification says: findings with a place and a mend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing worth saying about a data set.

    Args:
        severity: "problem" makes the command fail, "warning" asks for a look, "note" says what could not be checked.
        check: Which check found it, one word.
        text: What is wrong, with the numbers.
        mend: What to do about it; empty where the text says it.
        file: The file, folder or sample; empty when it is about the whole set.
    """

    severity: Severity
    check: str
    text: str
    mend: str = ""
    file: str = ""

    @property
    def line(self) -> str:
        """The finding on one line."""
        where = f"{self.file}: " if self.file and self.file not in self.text else ""
        mend = f"; {self.mend}" if self.mend else ""
        return " ".join(f"{where}{self.text}{mend}".split())

    def as_dict(self) -> dict[str, str]:
        """The finding as plain values."""
        return asdict(self)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, the worst first, otherwise in the order in which they were made."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def some(names: Iterable[object], count: int = 3) -> str:
    """Return the first names and how many more there are: "a, b, c and 4 more"."""
    words = [str(name) for name in names]
    return ", ".join(words[:count]) + (f" and {len(words) - count} more" if len(words) > count else "")
