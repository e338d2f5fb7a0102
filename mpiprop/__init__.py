"""mpiprop: text or image to 3D by score distillation, many optimiser steps at once, over MPI."""

__version__ = "0.1.0"
