"""Many comparisons at once: of twenty that show nothing, one is expected to look significant."""

from __future__ import annotations

from collections.abc import Mapping

from es2.results.paired import LEVEL


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values (1979) of a family of comparisons.

    Calling those below 5 % significant calls any true zero so in at most 5 % of families, however the
    comparisons depend on each other.

    Args:
        p_values: of each comparison, by its name.

    Returns:
        the adjusted ones in the same order, each at least as large as it was.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def chance_note(p_values: Mapping[str, float]) -> str:
    """One sentence: how many comparisons, how many chance alone would pass, and how many hold."""
    count = len(p_values)
    if count == 1:
        return (
            "One comparison was made; 1 in 20 such would look significant at 5 % by chance alone."
        )
    single = sum(p <= LEVEL for p in p_values.values())
    kept = sum(p <= LEVEL for p in holm(p_values).values())
    return (
        f"{count} comparisons were made, of which chance alone would make {LEVEL * count:.1f} look "
        f"significant at 5 %; {single} do, and {kept} still do after Holm's correction."
    )
