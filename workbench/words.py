"""Format quantities for terminals, notebooks and pages."""


def duration(seconds: float | int) -> str:
    """Format a duration in seconds with a suitable unit.

    Examples:
        >>> duration(80), duration(400), duration(5400), duration(7500), duration(200_000)
        ('80 s', '6.7 min', '90 min', '2 h 05 min', '2.31 days')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 570:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes >= 2880:
        return f"{minutes / 1440:.3g} days"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes % 60 else f"{minutes // 60} h"
