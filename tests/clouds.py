"""A tiny cloud of Gaussians that clones, splits, prunes and resets within 30 steps, for the tests of the engine."""

import torch
import yaml

from mpiprop.config import loader
from mpiprop.run.stage import Stage

STAGE = """
prompt: a red ball
preview: {every_s: 0}
turntable: {frames: 2, size: 16}
mesh: {resolution: 16}
stages:
- name: splats
  steps: 30
  shape: {use: "Gaussians", number: 60, ball: 0.5, opacity: 0.3, densify_every: 6, densify_until: 24,
          densify_gradient: 0.15, densify_size: 0.16, densify_most: 120, prune_opacity: 0.21, prune_size: 0.5, reset_every: 15,
          reset_opacity: 0.3}
  material: {use: "NoMaterial"}
  background: {use: "Solid", random_prob: 0.5}
  render: {use: "Splat"}
  terms:
  - name: novel
    views: {use: "Random", batch: 2, size: 10, distance: [1.6, 2.0], fovy_deg: [40, 60], eval_fovy_deg: 50}
    guidance:
      use: "SDS"
      prior: {use: "ClosedForm", size: 8}
      prompts: {use: "Four"}
      scale: 1.0
  optimiser: {use: "Adam", lr: {geometry: 0.03}, betas: [0.9, 0.999]}
"""


def stage(**changes) -> Stage:
    """The stage, other keys for its shape and window put in."""
    keys = yaml.safe_load(STAGE)
    keys["stages"][0]["window"] = {name: changes.pop(name) for name in ("preset", "size", "threshold")
                                   if name in changes}
    keys["stages"][0]["shape"] |= changes
    return Stage(loader.parse(keys, "cloud"), 0, torch.device("cpu"))
