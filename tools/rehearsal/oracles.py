"""Each rasteriser, the hash encoding and the search for samples against its truth, forward and gradient, edge cases included.

The truth of small cases is a plain computation in float64 (naive.py), of large ones the same code on the CPU, which small cases
hold against the plain one. Contenders are the torch code on the device and each CUDA library that could be compiled. Limits:
torch 1e-3 (gradients 5e-3), libraries as stated in LIMITS; figures are |found - truth| / |truth|.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.render import gsplat, nvdiffrast, raster, splat, volume
from mpiprop.shapes.clouds.base import Splats
from mpiprop.shapes.fields.encoding import HashEncoding
from mpiprop.views.cameras import Views, orbit
from tools.rehearsal import naive
from tools.rehearsal.book import Section, apart, timed
from tools.rehearsal.packages import libraries

LIMITS = {"torch": (1e-3, 5e-3), "gsplat": (2e-2, 5e-2), "nvdiffrast": (5e-2, 1e-1), "tiny-cuda-nn": (1e-3, 5e-3)}
PLAIN = 64 * 64 * 40  # pixels times Gaussians or faces up to which the plain computation is asked
Outputs = Callable[..., Tensor]


@dataclass
class Case:
    """Inputs, and functions of them that should agree."""

    name: str
    inputs: dict[str, Tensor]  # on the CPU, float32; their gradients are compared
    truth: Outputs
    contenders: dict[str, Outputs]  # by library


def outcome(function: Outputs, inputs: dict[str, Tensor], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """What a function makes of the inputs on a device, and the gradient of a fixed random projection of it in them."""
    given = {name: tensor.to(device).detach().requires_grad_() for name, tensor in inputs.items()}
    found = function(**given)
    weights = normal(Streams(0, 0)("projection"), *found.shape).to(found)
    if found.requires_grad:
        (found * weights).sum().backward()
    zero = {name: torch.zeros_like(tensor) for name, tensor in given.items()}
    return found.detach(), {name: zero[name] if tensor.grad is None else tensor.grad for name, tensor in given.items()}


def compare(section: Section, case: Case, device: torch.device) -> None:
    """Rows of every contender: forward, gradient, and whether a second time gives the same bits."""
    cpu = torch.device("cpu")
    truth, slopes = outcome(case.truth, case.inputs, cpu)
    for library, function in case.contenders.items():
        with section.attempt(f"{case.name}: {library}"):
            found, grads = outcome(function, case.inputs, device)
            limit, slope_limit = LIMITS[library]
            section.row(f"{case.name}: {library}, forward", apart(found, truth), limit=limit)
            for name, grad in grads.items():
                section.row(f"{case.name}: {library}, gradient in {name}", apart(grad, slopes[name]), limit=slope_limit)
            again, twice = outcome(function, case.inputs, device)
            same = torch.equal(found, again) and all(torch.equal(grads[name], twice[name]) for name in grads)
            taken = timed(lambda: outcome(function, case.inputs, device), device, 1 if section.small else 3)
            section.row(f"{case.name}: {library}, same bits twice", str(same).lower(), ok=same if library == "torch" else None,
                        note=f"forward and backward {taken * 1e3:.3g} ms")


def clouds(there: dict[str, bool], small: bool, device: torch.device) -> list[Case]:
    """Gaussians: one, none in front of the camera, some, a picture that is not square, and many."""
    cases = []
    for name, N, size, away in (("one Gaussian", 1, (16, 16), 0), ("no Gaussian seen", 5, (16, 16), 50),
                                ("Gaussians", 40, (32, 48), 0), *([] if small else [("many Gaussians", 20000, (256, 256), 0)])):
        rng, far = Streams(N, 0), N > 1000
        views = orbit(torch.tensor([0.3, 2.0]), 0.4, 1.6, 0.9, size)
        inputs = {"means": uniform(rng("means"), N, 3, lo=-0.5, hi=0.5) + away * views.c2w[0, :3, 2],
                  "scales": uniform(rng("scales"), N, 3, lo=-5.0 if far else -3.5, hi=-3.5 if far else -1.5).exp(),
                  "rotations": normal(rng("rotations"), N, 4),
                  "opacities": uniform(rng("opacities"), N, lo=0.05, hi=0.95),
                  "harmonics": 0.5 * normal(rng("colour"), N, 1, 3)}
        plain = N * size[0] * size[1] <= PLAIN

        def drawn(tool: Callable, where: torch.device, views: Views = views) -> Outputs:
            def draw(rotations: Tensor, **tensors: Tensor) -> Tensor:
                cloud, seen = Splats(rotations=normalize(rotations, dim=-1), **tensors), views.to(where)
                layers = tool(cloud, splat.colours(cloud, seen), seen, 0.2, 100.0)
                return layers if isinstance(layers, Tensor) else layers[0]
            return draw
        cases.append(Case(f"{name}, {size[0]} x {size[1]}", inputs,
                          drawn(naive.splats if plain else splat.rasterize, torch.device("cpu")),
                          {"torch": drawn(splat.rasterize, device)}
                          | ({"gsplat": drawn(gsplat.rasterize, device)} if there.get("gsplat") else {})))
    return cases


def meshes(there: dict[str, bool], small: bool, device: torch.device) -> list[Case]:
    """Meshes: one face, faces smaller than a pixel, all behind the camera, and many faces."""
    cases = []
    for name, F, width, size, turn in (("one triangle", 1, 1.0, (16, 24), 1), ("tiny triangles", 20, 0.02, (16, 16), 1),
                                       ("triangles behind", 4, 1.0, (16, 16), -1),
                                       *([] if small else [("many triangles", 50000, 0.03, (256, 256), 1)])):
        rng = Streams(F, 0)
        views = orbit(torch.tensor([0.3]), 0.4, 2.0 * turn, 0.9, size)
        vertices = (uniform(rng("middle"), F, 1, 3, lo=-0.4, hi=0.4) + width * normal(rng("corners"), F, 3, 3)).view(-1, 3)
        if turn < 0:
            vertices = vertices * 0.1 + 4 * views.c2w[0, :3, 2]
        faces, plain = torch.arange(3 * F).view(F, 3), F * size[0] * size[1] <= PLAIN
        inputs = {"vertices": vertices, "attributes": uniform(rng("attributes"), 3 * F, 4)}

        def drawn(tool: object, where: torch.device, views: Views = views, faces: Tensor = faces) -> Outputs:
            def draw(vertices: Tensor, attributes: Tensor) -> Tensor:
                positions = raster.clip(views.to(where), vertices)
                if tool is None:
                    return naive.triangles(positions, faces, attributes, views.size)
                fragments = tool.rasterize(positions, faces.to(where), views.size)
                return tool.interpolate(attributes[None], faces.to(where), fragments)
            return draw
        cases.append(Case(f"{name}, {size[0]} x {size[1]}", inputs, drawn(None if plain else raster, torch.device("cpu")),
                          {"torch": drawn(raster, device)}
                          | ({"nvdiffrast": drawn(nvdiffrast, device)} if there.get("nvdiffrast") else {})))
    return cases


def encodings(there: dict[str, bool], small: bool, device: torch.device) -> list[Case]:
    """Hash encodings: one point, a few at the cube's walls, and many; the gradient in the table."""
    cases = []
    for name, N in (("one point", 1), ("points", 24), *([] if small else [("many points", 500_000)])):
        keys = (Streams(0, 0), 16, 19, 16, 1.447269237440378) if N > 100 else (Streams(0, 0), 4, 9, 4, 1.7)
        mine = HashEncoding(*keys, "torch").to(device)
        unit = uniform(Streams(N, 0)("unit"), 3, N)
        unit[:, :2] = torch.tensor([[0.0, 1.0]])[:, :min(2, N)]
        inputs = {"table": 1e4 * mine.table.detach().cpu()}

        def read(encoding: HashEncoding | None, levels: tuple = mine.levels, unit: Tensor = unit) -> Outputs:
            def features(table: Tensor) -> Tensor:
                if encoding is None:
                    return naive.hashed(table, unit, levels)
                encoding.to(table.device)
                return torch.func.functional_call(encoding, {"table": table}, (unit.to(table.device),))
            return features
        contenders = {"torch": read(mine)}
        if there.get("tiny-cuda-nn"):
            contenders["tiny-cuda-nn"] = through_tcnn(keys, unit, device)
        truth = read(None if N < 100 else HashEncoding(*keys, "torch"))
        cases.append(Case(f"hash encoding, {name}", inputs, truth, contenders))
    return cases


def through_tcnn(keys: tuple, unit: Tensor, device: torch.device) -> Outputs:
    """The encoding by tiny-cuda-nn, which reads its own parameter."""
    encoding = HashEncoding(*keys, "tcnn").to(device)

    def features(table: Tensor) -> Tensor:
        encoding.table.data, encoding.table.grad = table.detach(), None
        return linked(encoding(unit.to(device)), encoding.table, table)
    return features


def linked(out: Tensor, parameter: Tensor, table: Tensor) -> Tensor:
    """`out`, whose gradient in `parameter` arrives in `table`."""
    class Link(torch.autograd.Function):
        @staticmethod
        def forward(ctx, table: Tensor) -> Tensor:
            return out.detach().clone()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return torch.autograd.grad(out, parameter, grad)[0]
    return Link.apply(table)


def marches(section: Section, there: dict[str, bool], device: torch.device) -> None:
    """Rows of the search for samples: cells all empty, all full, and some."""
    for share, pixels in ((0.0, 4), (0.3, 4), (1.0, 4), *([] if section.small else [(0.1, 256)])):
        rays = orbit(torch.tensor([0.3]), 0.4, 2.2, 0.9, (pixels, pixels)).rays()
        origins, directions = (each.reshape(-1, 3) for each in rays)
        jitter, step = uniform(Streams(0, 0)("jitter"), len(origins)), 0.15 if pixels < 10 else 0.01
        occupied = uniform(Streams(0, 0)("cells"), 8, 8, 8) < share

        def numbered(march: Callable, where: torch.device) -> set[tuple]:
            ray, t = march(origins.to(where), directions.to(where), occupied.to(where), 1.0, step, jitter.to(where))
            k = (t / step - jitter.to(where)[ray] - 0.5).round().long()
            return {*zip(ray.tolist(), k.tolist())}
        truth = (naive.samples(origins, directions, occupied, 1.0, step, jitter) if pixels < 10
                 else numbered(volume._march, torch.device("cpu")))
        marchers = {"torch": volume._march} | ({"nerfacc": volume._march_nerfacc} if there.get("nerfacc") else {})
        for library, march in marchers.items():
            what = f"samples in cells {share:.0%} full, {pixels} x {pixels}: {library}"
            with section.attempt(what):
                section.row(what, len(numbered(march, device) ^ truth) / max(1, len(truth)), limit=2e-3,
                            note=f"share that differs, of {len(truth):,}")


def notices(section: Section, device: torch.device) -> None:
    """Whether a gradient that is wrong by a fifth, and a picture that is a pixel off, are told from right ones."""
    case = clouds({}, True, device)[2]
    truth, slopes = outcome(case.truth, case.inputs, torch.device("cpu"))
    forward, backward = LIMITS["gsplat"]
    section.row("a wrong gradient is noticed", apart(1.2 * slopes["means"], slopes["means"]), ok=apart(
        1.2 * slopes["means"], slopes["means"]) > backward)
    section.row("a shifted picture is noticed", apart(truth.roll(1, 2), truth), ok=apart(truth.roll(1, 2), truth) > forward)


def main() -> None:
    section = Section.of(__doc__)
    device, there = section.device(), libraries(section.work)
    notices(section, device)
    marches(section, there, device)
    for make in (clouds, meshes, encodings):
        with section.attempt(make.__name__):
            for case in make(there, section.small, device):
                if section.left < 3:
                    section.row(case.name, "not reached", ok=False)
                    continue
                with section.attempt(case.name):
                    compare(section, case, device)


if __name__ == "__main__":
    main()
