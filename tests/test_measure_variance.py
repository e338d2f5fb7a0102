"""The measurement of control variates: its parts of a gradient, put together, are the gradient that the program computes."""

import pytest
import torch

from mpiprop.config import loader
from mpiprop.core.streams import Streams, normal
from mpiprop.core.variance import LEVELS
from mpiprop.objective.gradient import ComputationUnit
from mpiprop.run.stage import Stage
from tools.measure_variance import drawn, hosts

STEIN = "{use: Stein, estimator: {use: DPT, model: builtin}}"
TAU, SEEDS = 50, range(1, 4)


@pytest.mark.parametrize("host, config, key", [
    ("SDS 7.5", "demo/steindreamer", "cfg=B"), ("ASD 7.5", "demo/asd", "scale=7.5"),
    ("VSD 7.5", "demo/prolificdreamer", "scale=7.5")])
def test_the_parts_make_the_gradient_of_the_program(host: str, config: str, key: str) -> None:
    """The unit of a seed, asked for the first of its four views, has the gradient of that seed's draw, and those of several
    seeds have the variance. Its control variates have seen nothing yet, and so leave the host as it is."""
    guidance = "stages.0.terms.0.guidance"
    run = loader.load(config, [f"{guidance}.variates={STEIN}", f"{guidance}.{key}", "stages.0.terms.0.penalties={}"])
    stage = Stage(run, 0, torch.device("cpu"))
    unit = stage.unit(stage.embeddings())
    theta = stage.scene.theta()
    D = theta.layout.D
    theta.flat[:D] += 0.02 * normal(Streams(0, 0)("nudge"), D)  # a fresh LoRA adds nothing
    (parts, baseline), = [rest for name, *rest in hosts(stage.lora is not None) if name == host]

    draws = drawn(unit, stage, theta, TAU, SEEDS)
    scene = torch.ones(D, dtype=torch.bool)
    if stage.lora is not None:
        scene[theta.layout.groups["lora"]] = False  # the LoRA learns by a loss of its own
    grads = torch.stack([4 * ComputationUnit(stage.scene, unit.terms, seed, stage.name)(theta, TAU, 0, 4).grad[scene]
                         for seed in SEEDS]).double()

    whole = parts.clone()
    whole[-2] = -baseline
    combined = torch.einsum("p,lpd->d", whole, draws.mean.double())
    assert not combined[~scene].any()
    torch.testing.assert_close(combined[scene], grads.sum(0), rtol=1e-3, atol=1e-5 * float(grads.abs().max()))
    variance, from_noise = draws.variance(parts, torch.tensor([[baseline, 0.0]], dtype=torch.float64).repeat(LEVELS, 1))
    assert variance == pytest.approx(float(grads.var(0).sum()), rel=1e-4)
    assert from_noise > 0  # the second noise is another
