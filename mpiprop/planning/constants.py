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
    """The law of T/K (laws.Law) of a rule for e, and the runs that it was fitted to, to the demo more closely than to toy.

    T/K is tau/k in the last line of metrics.jsonl, after `mpiprop run toy stages.0.steps=240 window.size=P KEYS` and
    `mpiprop run demo prompt="a green mushroom" stages.0.steps=100 window.size=7 KEYS`.
    """

    reach: float
    limit: float
    keys: str
    toy: Mapping[int, float]  # T/K by P
    demo: float


FITS = {
    "momentum": Fit(1.0, 9.0, "", {3: 2.96, 7: 6.67, 15: 10.43, 28: 10.43}, 6.25),
    "copy": Fit(1.0, 5.5, "window.predict=copy", {3: 2.96, 7: 6.32, 15: 10.91, 28: 10.91}, 5.56),
    "paper": Fit(0.6, inf, "window.preset=paper", {3: 2.61, 7: 5.22, 15: 10.43, 28: 17.14}, 4.35),
    "exact": Fit(0.0, inf, "window.threshold=0", {3: 1.30, 7: 1.88, 15: 2.73, 28: 3.64}, 1.0)}
