"""A scene's numbers and gradients are one flat vector, and its image a pure function of theta, step and seed."""

import pytest
import torch

from mpiprop.core.streams import Streams
from mpiprop.render.volume import Volume
from mpiprop.objective.scene import Scene
from mpiprop.appearance.backgrounds import NeuralEnvironment, Solid
from mpiprop.shapes.fields.hashgrid import HashGrid
from mpiprop.appearance.materials import Diffuse
from mpiprop.views.samplers import Random

SMALL = dict(radius=1.0, levels=4, log2_table=9, base_resolution=4, growth=1.7, hidden=16, start_level=2, start_step=10,
             update_steps=10, occupancy_resolution=16)


def small(seed=0, background=NeuralEnvironment, **keys):
    init = Streams(seed, 0).of("init")
    return Scene(HashGrid(init, **SMALL | keys), Diffuse(ambient_only_steps=20), background(init), Volume(samples=32))


def views(tau=3):
    return Random(batch=2, size=8)(tau, Streams(0, tau))


def test_dreamfusion_at_full_scale_has_the_published_dimension():
    init = Streams(0, 0).of("init")
    scene = Scene(HashGrid(init), Diffuse(activation="scale_-11_01", ambient_only_steps=2001), NeuralEnvironment(init),
                  Volume())
    assert scene.layout.D == 12_604_720 and scene.layout.L == 12_604_720 + 32 ** 3
    assert {name: span.stop - span.start for name, span in scene.layout.groups.items()} == {
        "geometry.encoding": 12_599_920, "geometry.density_network": 2112, "geometry.feature_network": 2240,
        "background.network": 448}
    assert scene.renderer.ray_spacing(scene.shape) == pytest.approx(0.01353125, rel=1e-4)


def test_parameters_gradients_and_riding_state_are_views_of_flat_vectors():
    scene = small()
    theta = scene.theta()
    scene.load(theta, 3)
    start, element = theta.flat.data_ptr(), theta.flat.element_size()
    tensors = dict(scene.shape.named_parameters("geometry"))
    tensors |= dict(scene.background.named_parameters("background"))
    tensors["geometry.cells.values"] = scene.shape.cells.values
    assert {entry.name for entry in scene.layout.entries} == set(tensors)
    for entry in scene.layout.entries:
        assert tensors[entry.name].data_ptr() == start + element * entry.offset
        if entry.group:
            assert tensors[entry.name].grad.data_ptr() == scene.grad.data_ptr() + element * entry.offset
    scene.render(views(), 3, Streams(0, 3)).rgb.sum().backward()
    for entry in scene.layout.entries[:-1]:
        assert tensors[entry.name].grad.data_ptr() == scene.grad.data_ptr() + element * entry.offset
        assert scene.grad[entry.span].abs().max() > 0, entry.name
    assert scene.theta().flat.data_ptr() != start and torch.equal(scene.theta().flat, theta.flat)


def test_a_flat_step_is_a_step_of_the_parameters():
    """Along the gradient the loss rises by step |grad|^2."""
    scene = small(background=Solid)
    theta, rng = scene.theta(), Streams(0, 3)
    theta.flat[scene.layout.entries[0].span] *= 3e3  # away from the kinks that the networks have at zero

    def loss(at):
        return scene.load(type(theta)(at, theta.layout), 3).render(views(), 3, rng).rgb.double().square().sum()

    loss(theta.flat).backward()
    direction = torch.cat([scene.grad, torch.zeros(theta.layout.L - theta.layout.D)])
    size = 1e-2 / direction.norm().item()
    expected = size * direction.double().square().sum().item()
    change = loss(theta.flat + size * direction) - loss(theta.flat - size * direction)
    assert change.item() / 2 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("tau", [3, 25])
def test_the_gradient_is_a_function_of_theta_step_and_seed(tau):
    scene, other = small(0), small(1)
    theta = scene.theta()
    found = []
    for s in (scene, other, scene):
        torch.manual_seed(len(found))
        s.load(theta, tau).grad.zero_()
        s.render(views(tau), tau, Streams(0, tau)).rgb.square().sum().backward()
        found.append(s.grad.clone())
        scene.load(small(2).theta(), 99).render(views(5), 99, Streams(0, 5))  # something else in between
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_riding_state_is_renewed_every_16_steps_in_a_new_theta():
    scene = small()
    theta = scene.theta()
    kept = theta.flat.clone()
    assert scene.refresh(theta, 15, Streams(0, 15)) is theta
    fresh = scene.refresh(theta, 16, Streams(0, 16))
    assert torch.equal(theta.flat, kept) and torch.equal(fresh.trained, theta.trained)
    assert not torch.equal(fresh.flat, theta.flat)
    assert torch.equal(fresh.flat, small(1).refresh(theta, 16, Streams(0, 16)).flat)


def test_loading_sets_the_progressive_band():
    scene = small()
    theta = scene.theta()
    for tau, active in ((0, 2), (19, 2), (20, 3), (99, 4)):
        assert scene.load(theta, tau).shape.encoding.active == active


def test_evaluation_renders_have_no_randomness_and_export_queries_answer():
    scene = small()
    frame = Random(eval_distance=2.0).turntable(2, (8, 8))
    with torch.no_grad():
        one, two = scene.render(frame, 100), scene.render(frame, 100)
    assert torch.equal(one.rgb, two.rgb) and one.normal.shape == (2, 8, 8, 3)
    x = torch.tensor([[0.0, 0, 0], [0.9, 0.9, 0.9]])
    density, albedo = scene.shape.solid(x), scene.albedo(x)
    assert density[0] > 5 > 0.1 > density[1] and albedo.shape == (2, 3) and 0 <= albedo.min() <= albedo.max() <= 1
    assert not albedo.requires_grad


def test_normals_are_left_out_only_where_the_shading_does_not_read_them():
    scene = small()
    assert scene.render(views(), 3, Streams(0, 3), needs=()).normal is None
    shaded = next(tau for tau in range(20, 60) if scene.material.wants_normals(tau, Streams(0, tau)))
    assert scene.render(views(), shaded, Streams(0, shaded), needs=()).normal is not None
    assert small(normal="none").render(views(), 3, Streams(0, 3)).normal is None
