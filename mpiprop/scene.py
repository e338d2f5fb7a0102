"""What is optimised, as modules that draw it and as one flat vector: the only place that knows both.

Letters: N points, D trained numbers, L = D + the numbers that ride along. The parameters are views of theta.flat and
their gradients views of `grad`, so that loading a theta copies nothing and a gradient is flat as soon as it exists.
"""

from functools import partial

import torch
from torch import Tensor, nn

from .core.steps import Streams
from .core.theta import Layout, Theta
from .priors.lora import Lora
from .render.volume import Volume
from .shapes.base import Field
from .views.cameras import Image, Views


class Scene:
    """A shape of some material before a background, seen by a renderer.

    Learning-rate groups are the parts of "geometry" (the shape: "geometry.encoding", ...), "material" and "background", and
    "lora" (what a guidance learns), as far as they have parameters.
    """

    def __init__(self, shape: Field, material: nn.Module, background: nn.Module, renderer: Volume,
                 device: torch.device | str = "cpu", lora: Lora | None = None) -> None:
        self.device = torch.device(device)
        self.shape, self.material, self.background = shape, material, background
        self.renderer, self.lora = renderer, lora
        modules = {"geometry": shape, "material": material, "background": background, **({"lora": lora} if lora else {})}
        trained = [(f"{kind}.{name}", parameter, kind if kind == "lora" else f"{kind}.{name.partition('.')[0]}")
                   for kind, module in modules.items() for name, parameter in module.to(self.device).named_parameters()]
        riding = [(f"geometry.{name}", buffer) for name, buffer in shape.riding().items()]
        self.layout = Layout.of([(name, tuple(p.shape), group) for name, p, group in trained],
                                [(name, tuple(b.shape)) for name, b in riding],
                                {"lora": len(lora.lanes)} if lora else {})
        tensors = {name: tensor for name, tensor, *_ in (*trained, *riding)}
        self._seats = [(tensors[entry.name], entry.span, entry.shape) for entry in self.layout.entries]
        self.flat = torch.cat([tensor.detach().reshape(-1) for tensor, _, _ in self._seats])
        self.grad = torch.zeros(self.layout.D, device=self.device)
        for parameter, span, shape_ in self._seats[:len(trained)]:
            parameter.grad = self.grad[span].view(shape_)
        self.load(Theta(self.flat, self.layout), 0)

    @property
    def bound(self) -> float:
        """Half the side of the box that holds everything (world units)."""
        return self.shape.radius

    def theta(self) -> Theta:
        """A copy of the present numbers."""
        return Theta(self.flat.clone(), self.layout)

    def load(self, theta: Theta, tau: int) -> "Scene":
        """This scene, its numbers now those of theta (on this scene's device; shared, not copied), set for step tau."""
        self.flat, self.tau = theta.flat, tau
        for tensor, span, shape in self._seats:
            tensor.data = theta.flat[span].view(shape)
        self.shape.at(tau)
        return self

    def refresh(self, theta: Theta, tau: int, rng: Streams) -> Theta:
        """Theta with its riding state renewed, and its LoRAs averaged, for step tau; theta itself where nothing is due."""
        merge = self.lora is not None and self.lora.due(tau)
        if not merge and not self.shape.due(tau):
            return theta
        fresh = Theta(theta.flat.clone(), theta.layout)
        if merge:
            lanes = fresh.flat[theta.layout.groups["lora"]].view(len(self.lora.lanes), -1)
            lanes.copy_(lanes.mean(0))
        if self.shape.due(tau):
            self.load(fresh, tau).shape.refresh(tau, self.renderer.step(self.shape), rng)
        return fresh

    def render(self, views: Views, tau: int, rng: Streams | None = None, normals: bool = True) -> Image:
        """The image of the scene at step tau, differentiable in its parameters; rng None: an evaluation image, without
        jitter or drawn shading. `normals` False leaves out those that the shading does not read."""
        views = views.to(self.device)
        normals = self.shape.has_normals and (normals or self.material.wants_normals(tau, rng, views.unlit))
        shade = partial(self.material, tau=tau, rng=rng, unlit=views.unlit)
        return self.renderer(self.shape, shade, partial(self.background, rng=rng), views, rng, normals)

    @torch.no_grad()
    def surface(self) -> tuple[Tensor, Tensor] | None:
        """Vertices [V, 3] and faces [F, 3] of a shape that is a surface; None of a field."""
        return self.shape.surface()

    @property
    def level(self) -> float | None:
        """Of `solid` at a field's surface; None where it is a matter of choice."""
        return self.shape.level

    @torch.no_grad()
    def solid(self, x: Tensor) -> Tensor:
        """What [N] of a field exceeds a level inside its surface, at points [N, 3]."""
        return self.shape.solid(x)

    @torch.no_grad()
    def albedo(self, x: Tensor) -> Tensor:
        """Unlit colour [N, 3] in [0, 1] at points [N, 3]."""
        return self.material.albedo(self.shape.features(x)).clamp(0, 1)
