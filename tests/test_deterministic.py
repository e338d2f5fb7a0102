"""What a run asks of a GPU: operations that torch can do in the same order every time.

A run on a GPU asks for deterministic algorithms, and torch refuses the operations that have none there. They are looked for
here among all that a step does, backwards included, on the CPU with the same request.
"""

from collections.abc import Iterator

import pytest
import torch
from finished import flat
from tiny_models import make
from torch.utils._python_dispatch import TorchDispatchMode

from mpiprop.config import loader
from mpiprop.core import sums
from mpiprop.run.stage import Stage
from mpiprop.shapes.surfaces.base import Surface

# By the list in the manual of torch.use_deterministic_algorithms, with the names that operations have inside torch. Not among
# them: upsample_bilinear2d_backward, whose place another implementation takes on a GPU (torch.nn.functional.interpolate).
REFUSED = {"_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "_ctc_loss_backward",
           "_embedding_bag_dense_backward", "_upsample_bicubic2d_aa_backward",
           "_upsample_bilinear2d_aa_backward", "adaptive_max_pool2d_backward", "avg_pool3d_backward",
           "fractional_max_pool2d_backward", "grid_sampler_2d_backward", "grid_sampler_3d_backward",
           "histc", "index_reduce", "max_unpool2d", "max_unpool3d", "median", "nll_loss2d_backward",
           "nll_loss2d_forward", "put", "put_", "reflection_pad1d_backward", "reflection_pad2d_backward",
           "reflection_pad3d_backward", "upsample_bicubic2d_backward", "upsample_linear1d_backward",
           "upsample_trilinear3d_backward"}
SUMS = {"cumsum", "cumsum_"}  # refused for floating-point numbers


class Watch(TorchDispatchMode):
    """Notes operations that a GPU would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, operation, kinds, args=(), keywords=None):
        name = operation.overloadpacket.__name__
        real = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        if name in REFUSED or name in SUMS and real or name == "bincount" and len(args) > 1 and args[1] is not None:
            self.found.add(name)
        if "scatter_reduce" in name and args[4] not in ("amin", "amax"):
            self.found.add(f"{name} {args[4]}")
        return operation(*args, **(keywords or {}))


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_what_a_gpu_would_refuse_is_noticed(deterministic):
    x = torch.rand(2, 1, 4, 4, requires_grad=True)
    with Watch() as watch:
        torch.nn.functional.grid_sample(x, torch.zeros(2, 3, 3, 2), align_corners=False).sum().backward()
        torch.arange(4).cumsum(0)
        assert watch.found == {"grid_sampler_2d_backward"}
        torch.rand(4).cumsum(0)
        torch.zeros(3).scatter_reduce(0, torch.tensor([0, 0]), torch.rand(2), "prod")
    assert watch.found == {"grid_sampler_2d_backward", "cumsum", "scatter_reduce prod"}


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 128 ** 2, 128 ** 2 + 1, 300_000])
def test_sums_are_those_of_torch(deterministic, n):
    values = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    torch.testing.assert_close(sums.cumulative(values), values.cumsum(0), rtol=0, atol=1e-11)


SMALL = {"views.batch": 2, "views.size": 16}
SYSTEMS = {  # shape's keys of each stage
    "dreamfusion-sd": [{"log2_table": 10}],
    "prolificdreamer": [{"log2_table": 10}, {"resolution": 12, "sphere": 0.5}, {"log2_table": 10, "resolution": 12}],
    "textmesh": [{"log2_table": 10}],
    "dreamgaussian": [{"number": 100, "opacity": 0.9}],
    "magic3d-sd": [{"log2_table": 10}, {"log2_table": 10, "resolution": 12}]}


@pytest.mark.parametrize("name", SYSTEMS)
def test_steps_do_nothing_that_a_gpu_refuses(deterministic, tmp_path, name):
    """A step, an evaluation render and the surface of each stage, at its first and its last step."""
    run = loader.load(name)
    for i, keys in enumerate(SYSTEMS[name]):
        term = f"stages.{i}.terms.0."
        kind = "if" if "DeepFloyd" in run.stages[i].terms[0].guidance.part("prior").use else "sd"
        if not (model := tmp_path / kind).exists():
            make(kind, model)
        given = {f"{term}guidance.prior.model": model, f"{term}guidance.prior.variant": "null",
                 **{f"{term}{key}": value for key, value in SMALL.items()},
                 **{f"stages.{i}.shape.{key}": value for key, value in keys.items()}}
        if run.stages[i].render.use == "Volume":
            given[f"stages.{i}.render.samples"] = 32
        stage = Stage(loader.load(name, [f"{key}={value}" for key, value in given.items()]), i, torch.device("cpu"))
        with Watch() as watch:
            unit, theta = stage.unit(stage.embeddings()), stage.scene.theta()
            drift, rollout = None, stage.rollout()
            x = rollout.start(theta)
            for tau in (0, stage.T - 1):
                drift = unit(theta, tau)
                assert drift.grad.any()
            rollout(drift, x)
            with torch.no_grad():
                stage.scene.render(stage.views[0].turntable(1, (8, 8)), stage.T)
            if not isinstance(stage.scene.shape, Surface):
                stage.scene.shape.solid(torch.rand(50, 3) - 0.5)
            stage.scene.albedo(torch.rand(50, 3) - 0.5)
        assert not watch.found


@pytest.mark.gpu
def test_a_run_on_a_gpu_ends_with_the_same_bits_again(mpirun, tmp_path):
    found = []
    for name in ("one", "again"):
        done = mpirun(0, "run", "toy", "device=cuda", "stages.0.steps=20", "turntable={frames: 1, size: 8}",
                      "mesh.resolution=8", "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
        found.append(flat(tmp_path / name))
    assert found[0] == found[1]
