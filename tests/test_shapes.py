"""The hash grid is tiny-cuda-nn's, its gradients are exact, and the occupancy grid covers what is dense."""

from math import exp, log1p

import pytest
import torch

from mpiprop.core.streams import Streams
from mpiprop.appearance.backgrounds import HashEnvironment, NeuralEnvironment, Solid, harmonics
from mpiprop.shapes.fields.encoding import HashEncoding, pyramid
from mpiprop.shapes.fields.hashgrid import HashGrid
from mpiprop.appearance.materials import Diffuse, NoMaterial
from mpiprop.shapes.fields.networks import MLP, trunc_exp

RNG = Streams(0, 0)
SMALL = dict(levels=4, log2_table=9, base_resolution=4, growth=1.7, hidden=16, start_level=4)


def naive(table, levels, point):
    """Features of one point by the definition of tiny-cuda-nn's grid, corner by corner, in unsigned Python integers."""
    features = []
    for level in levels:
        place = [float(c) * level.scale + 0.5 for c in point]
        cell = [int(p // 1) for p in place]
        total = torch.zeros(2, dtype=table.dtype)
        for corner in range(8):
            at = [cell[k] + (corner >> k & 1) for k in range(3)]
            weight = 1.0
            for k in range(3):
                weight *= place[k] - cell[k] if corner >> k & 1 else 1 - place[k] + cell[k]
            if level.resolution ** 3 <= level.entries:
                index = at[0] + at[1] * level.resolution + at[2] * level.resolution ** 2
            else:
                index = at[0] ^ (at[1] * 2654435761 % 2 ** 32) ^ (at[2] * 805459861 % 2 ** 32)
            entry = level.offset + index % level.entries
            total = total + weight * table[2 * entry:2 * entry + 2]
        features.append(total)
    return torch.cat(features)


def encoding():
    code = HashEncoding(RNG, levels=4, log2_table=9, base_resolution=4, growth=1.7, backend="torch")
    code.table.data.mul_(1e4)  # to order one
    return code


def points(n=64):
    edges = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0.5], [0, 1, 1]])
    return torch.cat([edges, torch.rand(n, 3, generator=RNG("points"))])


def test_pyramids_have_the_published_sizes():
    resolutions = [level.resolution for level in pyramid(16, 19, 16, 1.447269237440378)]
    assert resolutions == [16, 24, 34, 49, 71, 102, 148, 213, 308, 446, 646, 934, 1352, 1956, 2831, 4096]
    for growth, count in ((1.447269237440378, 12_599_920), (1.381912879967776, 12_196_240)):
        last = pyramid(16, 19, 16, growth)[-1]
        assert 2 * (last.offset + last.entries) == count


def test_features_equal_the_naive_definition_and_so_does_the_gradient_to_the_table():
    code, x = encoding(), points()
    table = code.table.detach().double().requires_grad_()
    expected = torch.stack([naive(table, code.levels, p) for p in x])
    weights = torch.rand(expected.shape, generator=RNG("weights"))
    found = code(x.T).T
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-5)  # places of up to 30 in float32
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(code.table.grad, table.grad.float(), rtol=1e-5, atol=1e-5)


def test_hashes_agree_with_unsigned_arithmetic_at_the_papers_scale():
    code = HashEncoding(RNG, 16, 19, 16, 1.447269237440378, "torch")
    x = points(12)
    expected = torch.stack([naive(code.table.detach().double(), code.levels, p) for p in x])
    torch.testing.assert_close(code(x.T).T, expected.float(), rtol=0, atol=2e-8)  # of values up to 1e-4: float32 places


def test_many_chunks_are_the_same_as_one(monkeypatch):
    code, x = encoding(), points()
    whole = code(x.T)
    monkeypatch.setattr("mpiprop.shapes.fields.encoding.CHUNK", 7)
    torch.testing.assert_close(code(x.T), whole, rtol=0, atol=0)


def test_the_gradient_in_the_points_equals_double_precision_autograd_and_reaches_the_table():
    code, x = encoding(), points()
    weights = torch.rand(len(x), 8, generator=RNG("weights")).requires_grad_()
    outer = torch.rand(len(x), 3, generator=RNG("outer"))
    features, pull = code.attach(x.T, code.read(x.T, True))
    gradient = pull(weights.T).T
    (gradient * outer).sum().backward()

    table = code.table.detach().double().requires_grad_()
    inner = weights.detach().double().requires_grad_()
    x64 = x.double().requires_grad_()
    expected = torch.stack([naive_smooth(table, code.levels, p) for p in x64])
    slope, = torch.autograd.grad((expected * inner).sum(), x64, create_graph=True)
    (slope * outer).sum().backward()
    torch.testing.assert_close(features, code(x.T), rtol=0, atol=0)
    torch.testing.assert_close(gradient, slope.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(code.table.grad, table.grad.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights.grad, inner.grad.float(), rtol=1e-4, atol=1e-4)


def naive_smooth(table, levels, point):
    """`naive` with weights that autograd can follow."""
    features = []
    for level in levels:
        place = point * level.scale + 0.5
        cell = place.detach().floor()
        frac = place - cell
        total = torch.zeros(2, dtype=table.dtype)
        for corner in range(8):
            bits = torch.tensor([corner >> k & 1 for k in range(3)])
            weight = torch.where(bits == 1, frac, 1 - frac).prod()
            x, y, z = (cell.long() + bits).tolist()
            if level.resolution ** 3 <= level.entries:
                index = x + y * level.resolution + z * level.resolution ** 2
            else:
                index = x ^ (y * 2654435761 % 2 ** 32) ^ (z * 805459861 % 2 ** 32)
            entry = level.offset + index % level.entries
            total = total + weight * table[2 * entry:2 * entry + 2]
        features.append(total)
    return torch.cat(features)


def test_levels_beyond_the_active_ones_are_zero_and_get_no_gradient():
    code = encoding()
    code.active = 2
    features = code(points().T).T
    features.sum().backward()
    assert features[:, 4:].abs().max() == 0 and features[:, :4].abs().min() > 0
    assert code.table.grad[2 * code.levels[2].offset:].abs().max() == 0


def test_the_band_has_8_levels_until_2499_then_one_more_every_500_steps():
    field = HashGrid(RNG, **SMALL | {"levels": 16, "start_level": 8})
    seen = []
    for tau in (0, 2000, 2499, 2500, 5999, 6000, 9999):
        field.at(tau)
        seen.append(field.encoding.active)
    assert seen == [8, 8, 8, 9, 15, 16, 16]


def test_initial_densities_are_those_of_the_blob():
    """With the table near zero: softplus(10), softplus(0), softplus(-10) at |x| = 0, 0.5, 1 (std 0.5, scale 10)."""
    x = torch.tensor([[0.0, 0, 0], [0, 0.5, 0], [0, 0, 1]])
    density = HashGrid(RNG, **SMALL).density(x)
    expected = torch.tensor([log1p(exp(-10)) + 10, 0.693147, log1p(exp(-10))])
    torch.testing.assert_close(density, expected, rtol=1e-3, atol=0)
    gaussian = HashGrid(RNG, **SMALL, blob="dreamfusion", activation="exp", blob_scale=5.0, blob_std=0.2).density(x)
    torch.testing.assert_close(gaussian[:2].log(), torch.tensor([5.0, 5 * exp(-3.125)]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normal", ["analytic", "finite_difference", "none"])
def test_probing_gives_the_values_and_gradients_of_a_selection(normal):
    field = HashGrid(RNG, **SMALL, radius=1.0, normal=normal)
    field.encoding.table.data.mul_(1e4)
    x = points() * 2 - 1
    some = torch.arange(len(x)) % 3 == 0
    density, values = field.probe(x, normals=normal != "none")
    assert not density.requires_grad
    torch.testing.assert_close(density, field.density(x))
    found = values(some)
    torch.testing.assert_close(found.density, field.density(x[some]))
    torch.testing.assert_close(found.features, field.features(x[some]))
    one, other = (torch.autograd.grad(f.square().sum(), list(field.parameters())[:2])
                  for f in (found.density, field.density(x[some])))
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b)
    if normal != "none":
        torch.testing.assert_close(found.normals, field.evaluate(x[some], True).normals)


@pytest.mark.parametrize("blob", ["magic3d", "dreamfusion", "none"])
@pytest.mark.parametrize("layers", [1, 2])
def test_analytic_normals_point_down_the_density_and_are_differentiable(blob, layers):
    field = HashGrid(RNG, **SMALL, blob=blob, blob_scale=2.0, hidden_layers=layers, radius=1.0)
    field.encoding.table.data.mul_(1e4)
    x = torch.rand(40, 3, generator=RNG("x")) * 1.6 - 0.8
    found = field.evaluate(x, True)
    step = 1e-3
    slope = torch.stack([field.density(x + step * e) - field.density(x - step * e) for e in torch.eye(3)], -1)
    cosine = torch.cosine_similarity(found.normals, -slope, dim=-1)
    assert cosine.median() > 0.9999  # a difference that straddles a cell's wall may be off
    torch.testing.assert_close(found.density, field.density(x))
    torch.testing.assert_close(found.features, field.features(x))


def test_where_the_density_is_flat_normals_are_zero_and_gradients_finite():
    field = HashGrid(RNG, **SMALL, blob="none")
    field.density_network.weights[1].data.zero_()
    normals = field.evaluate(points(), True).normals
    normals.sum().backward()
    assert normals.abs().max() == 0 and field.density_network.weights[1].grad.isfinite().all()


@pytest.mark.parametrize("blob", ["magic3d", "none"])
def test_gradients_of_normals_equal_double_backward_through_a_naive_field(blob):
    field = HashGrid(RNG, **SMALL, blob=blob, radius=1.0)
    field.encoding.table.data.mul_(1e4)
    x = torch.rand(12, 3, generator=RNG("x")) * 1.6 - 0.8
    outer = torch.rand(12, 3, generator=RNG("outer"))
    trained = [field.encoding.table, field.density_network.weights[0], field.density_network.weights[1]]
    found = torch.autograd.grad((field.evaluate(x, True).normals * outer).sum(), trained)

    table, first, last = (tensor.detach().double().requires_grad_() for tensor in trained)
    at = x.double().requires_grad_()
    code = torch.stack([naive_smooth(table, field.encoding.levels, p) for p in at / 2 + 0.5])
    raw = ((code @ first.T).relu() @ last.T)[:, 0] + (10 - 20 * at.norm(dim=-1) if blob == "magic3d" else 0)
    slope, = torch.autograd.grad(torch.nn.functional.softplus(raw).sum(), at, create_graph=True)
    normal = -slope / slope.norm(dim=-1, keepdim=True)
    for a, b in zip(found, torch.autograd.grad((normal * outer).sum(), (table, first, last))):
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-3)


def test_finite_difference_normals_agree_with_analytic_ones():
    keys = SMALL | {"radius": 1.0}
    analytic = HashGrid(RNG, **keys)
    differences = HashGrid(RNG, **keys, normal="finite_difference", normal_step=1e-3)
    x = torch.rand(40, 3, generator=RNG("x")) - 0.5
    a, b = analytic.evaluate(x, True).normals, differences.evaluate(x, True).normals
    assert (a * b).sum(-1).min() > 0.999


def test_networks_equal_torch_modules():
    mlp = MLP(RNG, 5, 7, 7, 1)
    linear, relu = torch.nn.Linear, torch.nn.ReLU()
    reference = torch.nn.Sequential(linear(5, 7, bias=False), relu, linear(7, 7, bias=False), relu,
                                    linear(7, 1, bias=False))
    for layer, weight in zip(reference[::2], mlp.weights):
        layer.weight.data.copy_(weight)
    x = torch.randn(20, 5, generator=RNG("x")).requires_grad_()
    value, gradient = mlp.value_and_gradient(x.T)
    torch.testing.assert_close(value, reference(x)[:, 0])
    torch.testing.assert_close(mlp(x.T).T, reference(x))
    torch.testing.assert_close(gradient.T, torch.autograd.grad(reference(x).sum(), x)[0])


def test_truncated_exponential_is_the_exponential_with_a_bounded_slope():
    x = torch.tensor([0.0, 20.0], requires_grad=True)
    y = trunc_exp(x)
    y.sum().backward()
    torch.testing.assert_close(y, x.exp())
    torch.testing.assert_close(x.grad, torch.tensor([1.0, exp(15.0)]))


def test_initial_numbers_depend_on_the_seed_alone():
    torch.manual_seed(1)
    one = HashGrid(Streams(3, 0), **SMALL)
    torch.manual_seed(2)
    two, other = HashGrid(Streams(3, 0), **SMALL), HashGrid(Streams(4, 0), **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert torch.equal(one.cells.values, two.cells.values) and not torch.equal(one.encoding.table, other.encoding.table)


def test_the_occupancy_grid_starts_with_one_density_per_cell_and_then_decays_or_rises():
    field = HashGrid(RNG, **SMALL, radius=1.0, occupancy_resolution=8)
    centres = (torch.stack(torch.meshgrid(*3 * [torch.arange(8)], indexing="ij"), -1) + 0.5) / 4 - 1
    field.cells.values.zero_()
    field.refresh(0, 0.05, Streams(0, 0))
    first = field.occupancy().clone()
    near = centres.norm(dim=-1) < 0.3
    assert first[near].min() > 1 and first[centres.norm(dim=-1) > 1.2].max() < 0.1
    field.refresh(16, 0.05, Streams(0, 16))
    assert (field.occupancy() >= 0.95 * first).all() and (field.occupancy() > first).any()


def test_late_renewals_look_at_a_quarter_and_at_occupied_cells_and_repeat_exactly():
    field = HashGrid(RNG, **SMALL, radius=1.0, occupancy_resolution=8)
    before = field.cells.values.clone()
    field.cells.values.data = before.clone()
    field.refresh(256, 0.05, Streams(0, 256))
    after = field.cells.values.clone()
    changed = (after != before).sum().item()
    assert 64 < changed <= 256  # of 512 cells, 128 drawn with replacement and at most 128 occupied ones
    field.cells.values.data = before.clone()
    field.refresh(256, 0.05, Streams(0, 256))
    assert torch.equal(after, field.cells.values)


def shade(material, tau, rng, n=6):
    draw = torch.Generator().manual_seed(0)
    features, positions, normals, light = (torch.randn(n, 3, generator=draw) for _ in range(4))
    normals = normals / normals.norm(dim=-1, keepdim=True)
    towards = (light - positions) / (light - positions).norm(dim=-1, keepdim=True)
    cosine = (normals * towards).sum(-1, keepdim=True).clamp(min=0)
    return material(features, positions, normals, light, tau, rng), features, cosine


def test_shading_follows_its_schedule_in_the_published_proportions():
    material = Diffuse(ambient_only_steps=2001)
    assert material.shading(2000, Streams(0, 2000)) == "albedo" and material.shading(2000, None) == "albedo"
    assert material.shading(2001, None) == "albedo" and material.shading(2002, None) == "diffuse"  # as the last step could be
    assert Diffuse(ambient_only_steps=0).shading(0, None) == "diffuse"
    seen = [material.shading(tau, Streams(0, tau)) for tau in range(3000, 7000)]
    for name, share in (("albedo", 0.25), ("textureless", 0.375), ("diffuse", 0.375)):
        assert seen.count(name) / 4000 == pytest.approx(share, abs=0.025)


def test_shaded_colours_are_lamberts_law():
    rgb, features, cosine = shade(Diffuse(activation="scale_-11_01"), 5000, None)
    torch.testing.assert_close(rgb, (features / 2 + 0.5).clamp(0, 1) * (0.9 * cosine + 0.1))
    rgb, features, cosine = shade(Diffuse(textureless_prob=1.0, diffuse_prob=1.0), 5000, Streams(0, 0))
    torch.testing.assert_close(rgb, (0.9 * cosine + 0.1).expand(-1, 3))
    rng = Streams(0, 1)
    k_d = torch.rand(1, generator=rng("shading.soft"))
    rgb, features, cosine = shade(Diffuse(soft_shading=True, textureless_prob=0.0, diffuse_prob=1.0), 5000, rng)
    torch.testing.assert_close(rgb, features.sigmoid() * (k_d * cosine + 1 - k_d))
    rgb, features, _ = shade(NoMaterial(activation="scale_-11_01"), 5000, None)
    torch.testing.assert_close(rgb, features / 2 + 0.5)


def test_harmonics_are_orthonormal_over_the_sphere():
    draws = torch.randn(200_000, 3, generator=RNG("sphere"), dtype=torch.float64)
    basis = harmonics(draws / draws.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(basis @ basis.T / len(draws) * 4 * torch.pi, torch.eye(9).double(), rtol=0, atol=0.03)


def test_the_hash_environment_reads_its_grid_at_the_direction_in_the_unit_cube():
    environment = HashEnvironment(RNG, levels=2, log2_table=8, base_resolution=4, growth=2.0)
    environment.encoding.table.data.mul_(1e4)
    directions = torch.nn.functional.normalize(torch.randn(2, 3, 4, 3, generator=RNG("d")), dim=-1)
    code = torch.stack([environment.encoding((d[:, None] + 1) / 2)[:, 0] for d in directions.view(-1, 3)])
    first, second, last = environment.network.weights
    expected = (((code @ first.T).relu() @ second.T).relu() @ last.T).sigmoid().view(2, 3, 4, 3)
    torch.testing.assert_close(environment(directions, Streams(0, 0)), expected)
    assert expected.std(dim=(0, 1, 2)).min() > 1e-3


def test_backgrounds_are_replaced_by_one_colour_per_view_as_often_as_asked():
    directions = torch.nn.functional.normalize(torch.randn(2, 3, 4, 3, generator=RNG("d")), dim=-1)
    solid = Solid(RNG, colour=(0.2, 0.4, 0.6))
    torch.testing.assert_close(solid(directions, None)[1, 2, 3], torch.tensor([0.2, 0.4, 0.6]))
    environment = NeuralEnvironment(RNG, random_prob=0.5)
    assert sum(p.numel() for p in environment.parameters()) == 448
    plain = 0
    for tau in range(200):
        seen = environment(directions, Streams(0, tau))
        spread = (seen - seen[:, :1, :1]).abs().amax()
        plain += bool(spread == 0)
        assert spread > 0 or not torch.equal(seen[0, 0, 0], seen[1, 0, 0])
    assert 75 < plain < 125
    assert (environment(directions, None)[0, 0, 0] - environment(directions, None)[0, 2, 3]).abs().max() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "tcnn"])
def test_features_normals_and_gradients_on_cuda_equal_those_on_the_cpu(backend):
    if backend == "tcnn":
        pytest.importorskip("tinycudann")
    x, outer = points() * 2 - 1, torch.rand(68, 3, generator=RNG("outer"))
    found = []
    for device, where in (("cpu", "torch"), ("cuda", backend)):
        field = HashGrid(RNG, **SMALL, radius=1.0, backend=where)
        field.encoding.table.data.mul_(1e4)
        values = field.to(device).evaluate(x.to(device), True)
        (values.features + values.normals * outer.to(device)).sum().backward()
        found.append([t.detach().cpu() for t in (values.density, values.normals, field.encoding.table.grad)])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
