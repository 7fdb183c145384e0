"""Figures as people read them: how long, and how many of what."""


def clock(seconds: float) -> str:
    """A duration: 45s, 12m05s, 3h20m."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest}s"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A count and what it counts: `1 row`, `2,844 rows`, `1 entry`, `3 entries`.

    Args:
        count: How many.
        noun: Of one; the last word takes the s.
        plural: Of several, where an s does not make it.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"
