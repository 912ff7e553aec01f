"""How long something takes that is done again and again, and how to say it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def seconds_left(ends: Sequence[float], wanted: int, since: float) -> float | None:
    """Seconds until so many rounds are done, None where that cannot be told yet.

    `ends` has when each finished one ended, in seconds from the start; `since` is how long ago that was for
    the last. The first one is slower, because all is loaded in it, and counts only while it is the only one.
    """
    if len(ends) >= wanted:
        return 0.0
    if not ends:
        return None
    taken = [end - start for start, end in zip((0.0, *ends), ends, strict=False)]
    usual = median(taken[1:] or taken)
    return max(usual - since, 0.0) + usual * (wanted - len(ends) - 1)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any: 0:07, 12:30, 2:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
