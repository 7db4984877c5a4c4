"""How quantities read in sentences, the same on terminals, in notebooks and on pages."""


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them.

    Examples:
        >>> duration(80), duration(400), duration(5400), duration(12_000), duration(200_000)
        ('80 s', '6.7 min', '90 min', '3 h 20 min', '2.3 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 570:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 2880 else f"{minutes / 1440:.1f} days"
