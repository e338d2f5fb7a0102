"""The modules that are optimised and drawn, and the flat vector of their numbers.

Letters: N points, D trained numbers, L = D + the numbers that ride along. The parameters are views of theta.flat and
their gradients views of `grad`, so that loading a theta copies nothing and a gradient is flat as soon as it exists.
"""

from collections.abc import Collection, Mapping
from copy import copy
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mpiprop.appearance.backgrounds import TextBackground
from mpiprop.core import ancestry
from mpiprop.core.streams import Streams
from mpiprop.core.theta import Layout, Theta
from mpiprop.priors.lora import Lora
from mpiprop.render.base import NORMALS, Renderer
from mpiprop.shapes.base import Shape
from mpiprop.shapes.clouds.base import Cloud
from mpiprop.shapes.clouds.densify import MOVES, VIEWS
from mpiprop.shapes.fields.base import Field
from mpiprop.shapes.generators.base import Generator, Texts
from mpiprop.shapes.surfaces.base import Skin
from mpiprop.views.cameras import Image, Screen, Views, joined


class Scene:
    """A shape of some material before a background, seen by a renderer.

    `riding` are tensors of guidances, by name, that ride in theta beside those of the shape.

    Learning-rate groups are the parts of "geometry" (the shape: "geometry.encoding", ...), "material" and "background", and
    "lora" (what a guidance learns), as far as they have parameters.
    """

    texts: Texts  # the prompts that a generator makes objects of, given before it is drawn

    def __init__(self, shape: Shape, material: nn.Module, background: nn.Module, renderer: Renderer,
                 device: torch.device | str = "cpu", lora: Lora | None = None,
                 riding: Mapping[str, Tensor] | None = None) -> None:
        self.device = torch.device(device)
        self.shape, self.material, self.background = shape, material, background
        self.renderer, self.lora = renderer, lora
        modules = {"geometry": shape, "material": material, "background": background, **({"lora": lora} if lora else {})}
        self._trained = [(f"{kind}.{name}", parameter, kind if kind == "lora" else f"{kind}.{name.partition('.')[0]}")
                         for kind, module in modules.items() for name, parameter in module.to(self.device).named_parameters()]
        self._riding = [*((f"geometry.{name}", buffer) for name, buffer in shape.riding().items()), *(riding or {}).items()]
        self._tensors = {name: tensor for name, tensor, *_ in (*self._trained, *self._riding)}
        theta = self.theta()
        self._seat(theta.layout)
        self.load(theta, 0)

    def _seat(self, layout: Layout) -> None:
        """Allocates the gradient and the statistics for a layout."""
        self.layout = layout
        self._seats = [(self._tensors[entry.name], entry) for entry in layout.entries]
        self.grad = torch.zeros(layout.D, device=self.device)
        self.statistics = {name: torch.zeros(layout.N, device=self.device) for name in (MOVES, VIEWS) if layout.N}

    def theta(self) -> Theta:
        """Returns a copy of the numbers of the modules."""
        per_point = dict(self.shape.named_parameters(prefix="geometry")) if isinstance(self.shape, Cloud) else ()
        layout = Layout.of([(name, tuple(p.shape), group) for name, p, group in self._trained],
                           [(name, tuple(b.shape)) for name, b in self._riding],
                           {"lora": len(self.lora.lanes)} if self.lora else {}, per_point)
        flat = torch.cat([self._tensors[entry.name].detach().reshape(-1) for entry in layout.entries])
        return Theta(flat, layout, ancestry.roots(layout.N) if per_point else None)

    def load(self, theta: Theta, tau: int) -> "Scene":
        """Sets the modules' numbers to those of theta, which are shared, not copied, and the schedules to step tau.

        theta: on this scene's device
        Returns this scene.
        """
        if theta.layout is not self.layout and theta.layout != self.layout:
            self._seat(theta.layout)
        for tensor, entry in self._seats:
            tensor.data = theta.flat[entry.span].view(entry.shape)
            if entry.group:
                tensor.grad = self.grad[entry.span].view(entry.shape)
        self.shape.at(tau)
        return self

    def measure(self, screen: Screen, batch: int, size: tuple[int, int]) -> None:
        """Adds the screen-space gradients (NDC) of a batch's points to the statistics; those of each view's own loss, of which
        the loss is the mean."""
        half = screen.means.new_tensor([size[1] / 2, size[0] / 2])
        moves = (screen.means.grad * half).norm(dim=-1) * batch * screen.visible
        self.statistics[MOVES] += moves.sum(0)
        self.statistics[VIEWS] += screen.visible.sum(0)

    def refresh(self, theta: Theta, tau: int, rng: Streams) -> Theta:
        """Returns theta with riding state renewed and LoRAs averaged for step tau; theta itself where nothing is due."""
        merge = self.lora is not None and self.lora.due(tau)
        renew = isinstance(self.shape, Field) and self.shape.due(tau)
        if not merge and not renew:
            return theta
        fresh = replace(theta, flat=theta.flat.clone())
        if merge:
            lanes = fresh.flat[theta.layout.groups["lora"]].view(len(self.lora.lanes), -1)
            lanes.copy_(lanes.mean(0))
        if renew:
            self.load(fresh, tau).shape.refresh(tau, self.renderer.ray_spacing(self.shape), rng)
        return fresh

    def render(self, views: Views, tau: int, rng: Streams | None = None, needs: Collection[str] = NORMALS) -> Image:
        """Returns the image of the scene at step tau, differentiable in its parameters.

        rng: random streams of the step; None: evaluation, without jitter or random shading
        needs: as a renderer's, beside the normals that the shading reads
        """
        views = views.to(self.device)
        if isinstance(self.shape, Generator):
            made = {prompt: self._of_prompt(prompt, rng) for prompt in dict.fromkeys(prompt for prompt, _ in views.runs())}
            return joined([made[prompt].render(views[rows.start:rows.stop], tau, _streams_of(rows, rng), needs)
                           for prompt, rows in views.runs()])
        read = NORMALS if self.material.wants_normals(tau, rng, views.unlit) else frozenset()
        needs = read.union(needs) if self.shape.has_normals else frozenset()
        shade = partial(self.material, tau=tau, rng=rng, unlit=views.unlit)
        return self.renderer(self.shape, shade, partial(self.background, rng=rng), views, rng, needs)

    def object(self, prompt: int = 0) -> "Scene":
        """Returns the scene of one prompt's object, as evaluation sees it; this scene where the shape is no generator."""
        return self._of_prompt(prompt, None) if isinstance(self.shape, Generator) else self

    def _of_prompt(self, prompt: int, rng: Streams | None) -> "Scene":
        """The scene with the field that the generator makes of a prompt. Latent draws depend on the step and the prompt alone,
        so that parts of a batch see the same field."""
        made = copy(self)
        text = self.texts(prompt)
        made.shape = self.shape.field(text, rng and rng.of(f"generator/{prompt}"))
        if isinstance(self.background, TextBackground):
            made.background = self.background.reading(text)
        return made

    @torch.no_grad()
    def albedo(self, x: Tensor) -> Tensor:
        """Returns the unlit colours [N, 3] in [0, 1] at points [N, 3]."""
        if isinstance(self.shape, Cloud):
            return self.shape.colours(x)
        return self.material.albedo(self.shape.features(x)).clamp(0, 1)

    @torch.no_grad()
    def texture(self, skin: Skin) -> Tensor:
        """Returns the unlit colours [S, S, 3] in [0, 1] of a texture."""
        return self.material.albedo(skin.features.flatten(0, 1)).view_as(skin.features).clamp(0, 1)


def _streams_of(rows: range, rng: Streams | None) -> Streams | None:
    """The streams of some of the views that `rng` belongs to."""
    if rng is None:
        return None
    first = rng.views.start
    return rng.part(range(first + rows.start, first + rows.stop), rng.batch)
