"""A picture of the object from one side as the condition for views from others (Zero-1-to-3, Liu et al. 2023).

B images.
"""

from math import pi

import torch
from torch import Tensor


def pose(azimuth: Tensor, elevation: Tensor, distance: Tensor, azimuth0: Tensor, elevation0: Tensor,
         distance0: Tensor) -> Tensor:
    """The pose [B, 4] of cameras relative to the picture's (0): (d polar angle, sin d azimuth, cos d azimuth, d distance).

    The polar angle is measured from +z (pi/2 - elevation), so a camera above the picture's has a negative first number;
    azimuth turns from the front towards +y, the object's left, as everywhere here, so a camera further left has a
    positive second one. These are the signs of Zero-1-to-3's training data, whose world is z up and right-handed too.
    """
    turn = azimuth - azimuth0
    return torch.stack([elevation0 - elevation, turn.sin(), turn.cos(), distance - distance0], -1)
