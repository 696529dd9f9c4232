"""The gate: whether what a cycle did to a model is kept. Losses in nats per token, by domain."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Verdict:
    """`kept`, and why. `drift`: how far each old domain then stands above the lowest loss it has had."""

    kept: bool
    reason: str
    drift: dict[str, float] = field(default_factory=dict)


def judge(
    before: Mapping[str, float],
    after: Mapping[str, float],
    drift: Mapping[str, float],
    new: Collection[str],
    old: Collection[str],
    tolerance: float,
) -> Verdict:
    """Compares held-out losses before and after a cycle on the domains `new`.

    Each of the `old` domains may stand above its lowest loss by the share `tolerance` of it, so that small rises do not
    add up; one cycle may use half of what is left of that, so that something is left for the next. The losses of the
    new ones must fall, in the mean of their ratios.
    """
    if bad := [name for name, loss in after.items() if not math.isfinite(loss)]:
        return Verdict(False, f"The loss on {bad[0]} is not finite.")
    found = {name: max(0.0, drift.get(name, 0.0) + after[name] - before[name]) for name in after}
    for name in sorted(set(old) & set(after)):
        lowest = before[name] - drift.get(name, 0.0)
        if found[name] > (drift.get(name, 0.0) + tolerance * lowest) / 2:
            told = f"{found[name] / lowest:.1%} above the lowest it had, {lowest:.3f}"
            return Verdict(
                False, f"The loss on {name} rose from {before[name]:.3f} to {after[name]:.3f}: {told}.", found
            )
    ratios = [after[name] / before[name] for name in new if before.get(name)]
    gain = 1 - sum(ratios) / len(ratios) if ratios else 0.0
    names = ", ".join(sorted(new))
    if gain <= 0:
        return Verdict(False, f"The loss on {names} did not fall ({-gain:+.2%}).", found)
    return Verdict(True, f"The loss on {names} fell by {100 * gain:.3g}%, and no old one rose too far.", found)
