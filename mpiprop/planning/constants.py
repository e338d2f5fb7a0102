"""The constants that predictions use where nothing was measured, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

BANDWIDTH = 2.5  # GB/s of a rank's link: 25 Gb Ethernet
FIXED = 0.1  # share of an evaluation that does not depend on the number of views: assumed
FAST, MIDDLE, SLOW = 0.3, 1.0, 3.0  # seconds of an evaluation, around what is published (below)
PUBLISHED = "published on an A100: 0.8 s a step for DreamFusion, 1.4 s for DreamGaussian (DreamPropeller, table 2)"


@dataclass(frozen=True)
class Fit:
    """The law of T/K of a rule for e (laws.Law), and the runs that it was fitted to."""

    reach: float
    limit: float
    keys: str  # of `mpiprop run toy stages.0.steps=240 window.size=P KEYS`, whose last line in metrics.jsonl gives tau/k
    measured: Mapping[int, float]  # T/K by P


FITS = {
    "momentum": Fit(1.0, 9.0, "", {}),
    "copy": Fit(1.0, 5.5, "window.predict=copy", {}),
    "paper": Fit(0.7, inf, "window.preset=paper", {}),
    "exact": Fit(0.5, 4.0, "window.threshold=0", {})}
