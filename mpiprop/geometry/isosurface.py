"""How the surface of a density is looked for: first in the whole box, then in the one close around it."""

EMPTY = 1e-5  # densities up to here are empty space, not part of the mean that "auto" takes
MARGIN = 0.1  # of the object's extent, on each side of the box that is looked at closely
CHUNK = 1 << 16  # points evaluated at a time
