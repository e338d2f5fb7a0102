"""ScaleDreamer's generators: their sizes, their layers against reference implementations, and runs that give the same bits."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import Mpirun
from finished import flat
from torch import Tensor, nn

from mpiprop.appearance.backgrounds import HyperEnvironment
from mpiprop.appearance.materials import NoMaterial
from mpiprop.config import loader
from mpiprop.core.schedules import at
from mpiprop.core.streams import Streams, normal, uniform
from mpiprop.geometry.sampling import doubled, sample
from mpiprop.objective.scene import Scene
from mpiprop.render.volsdf import VolSDF
from mpiprop.shapes.generators.base import Generator, Text
from mpiprop.shapes.generators.conv3d import Conv3D, Convolution
from mpiprop.shapes.generators.hyper_ingp import HyperINGP
from mpiprop.shapes.generators.hypernetwork import HyperNetwork
from mpiprop.shapes.generators.triplane import Attention, Triplane
from mpiprop.views.cameras import orbit

RNG = Streams(0, 0)
WIDTH = 6
TINY = {"HyperINGP": {"levels": 3, "log2_table": 8, "base_resolution": 4, "hidden": 8},
        "Conv3D": {"resolution": 8, "channels": 6, "hidden": 8},
        "Triplane": {"layers": 1, "width": 8, "heads": 2, "side": 3, "channels": 4, "hidden": 8}}
CLASSES = {"HyperINGP": HyperINGP, "Conv3D": Conv3D, "Triplane": Triplane}


def draws(*shape: int, name: str = "draws") -> Tensor:
    return normal(RNG(name), *shape)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tiny(name: str) -> Generator:
    return CLASSES[name](RNG, radius=1.0, text_width=WIDTH, **TINY[name])


def text(name: str = "text") -> Text:
    tokens = draws(4, WIDTH, name=name)
    return Text(tokens[-1], tokens)


def test_sizes_are_the_published_ones() -> None:
    """ScaleDreamer's code; 3DConv-Net is counted without the two networks that read its grid."""
    hyper, behind = HyperINGP(RNG), HyperEnvironment(RNG)
    assert (count(hyper.encoding), count(hyper.hypernetwork)) == (12_599_920, 348_544)
    assert (count(behind.encoding), count(behind.hypernetwork)) == (131_072, 211_264)
    for multiplier, millions, rounding in ((1, 88.68, 0.005), (2, 144.8, 0.05)):
        conv = Conv3D(RNG, channel_multiplier=multiplier)
        net = count(conv) - count(conv.sdf_network) - count(conv.feature_network)
        assert net / 1e6 == pytest.approx(millions, abs=rounding)
        constants = sum(block.constant.numel() for block in conv.blocks if block.constant is not None)
        assert multiplier > 1 or constants / 1e6 == pytest.approx(44.3, abs=0.05)
        del conv
    assert count(Triplane(RNG)) / 1e6 == pytest.approx(120.54, abs=0.005)
    assert count(Triplane(RNG, reads="pooled")) / 1e6 == pytest.approx(88.27, abs=0.005)


RADIUS = {"hyper-ingp": 0.5, "att3d": 0.5, "conv3d": 0.8, "triplane": 0.8}  # of the sphere that every object begins as
SD = {"distance": (1.0, 1.5), "fovy_deg": (40, 70), "elevation_deg": (-10, 45), "distance_by_fovy": False,
      "eval_distance": 1.5, "eval_fovy_deg": 70, "batch": 1, "group": 1}
MV = {"distance": (0.8, 1.0), "fovy_deg": (15, 60), "elevation_deg": (0, 30), "distance_by_fovy": True,
      "eval_distance": 3.0, "eval_fovy_deg": 40, "batch": 64, "group": 4}


@pytest.mark.parametrize("name", RADIUS)
def test_configurations_have_the_authors_numbers(name: str) -> None:
    """ScaleDreamer's configurations (theEricMa/ScaleDreamer 23f433f9): Hyper-iNGP on MG15, 3DConv on AT2520, both for 50,000
    steps, and Triplane on DL17k with 8 GPUs. Its files say of ATT3D only that layers have spectral norms."""
    run = loader.load(name)
    (stage,), triplane, N = run.stages, name == "triplane", 100_000 if name == "triplane" else 50_000
    (term,) = stage.terms
    shape, render, guidance, prompts = stage.shape.keys, stage.render.keys, term.guidance.keys, term.guidance.part("prompts")
    assert len(run.prompts) == (15 if name in ("hyper-ingp", "att3d") else 2520) and (stage.steps, run.seed) == (N, 0)
    assert (shape["radius"], shape["sphere"], shape["text_width"]) == (2.0, RADIUS[name], 1024)
    assert (render["near"], render["proposal"], render["importance"]) == (0.1, 128, 64)
    wanted = {"size": 64, "camera_perturb": 0.0, "center_perturb": 0.0, "up_perturb": 0.0, "eval_elevation_deg": 15.0}
    wanted |= MV if triplane else SD
    assert {key: term.views.keys[key] for key in wanted} == wanted
    if name == "att3d":
        assert (term.guidance.use, at(guidance["scale"], 0), guidance["cfg"]) == ("SDS", 100, "A")
        assert shape["spectral_norm"] and stage.background.keys["spectral_norm"]
    else:
        assert (term.guidance.use, guidance["scale"], guidance["eta"], guidance["random"]) == ("ASD", 7.5, 0.1, True)
        bounds = [(at(guidance["t_min"], tau), at(guidance["t_max"], tau)) for tau in (0, N // 2, N)]
        assert bounds == [pytest.approx(pair) for pair in ((0.5, 0.98), (0.26, 0.74), (0.02, 0.5))]
        assert triplane or (prompts.keys["perp_neg"], prompts.keys["front_deg"], prompts.keys["back_deg"]) == (0.5, 30, 30)
    most = {"sparsity": (20, 20, 20, 20), "opaque": (0, 0, 0.5 if triplane else 5, 1 if triplane else 10),
            "eikonal": (0.01,) * 4 if triplane else (100, 1, 1, 1)}
    assert {penalty: tuple(at(weight, tau) for tau in (1, 5000, N * 9 // 10, N)) for penalty, weight in term.penalties.items()
            } == most
    rates, betas, eps = ((2e-4, (0.98, 0.92, 0.99), 1e-15) if triplane else
                         ({"geometry": 0.004, "background": 0.001}, (0.0, 0.99), 1e-8))
    assert [stage.optimiser.keys[key] for key in ("lr", "betas", "eps", "weight_decay")] == [rates, betas, eps, 0.0]
    assert stage.optimiser.use == ("Adan" if triplane else "Adam")
    assert stage.background.keys["random_prob"] == {"conv3d": 0.5, "triplane": 0.0}.get(name, 0.2)
    assert stage.material.keys["activation"] == ("padded_sigmoid" if triplane else "sigmoid")


@pytest.mark.parametrize("sizes", [(5, 4), (3, 4, 5)])
def test_sampling_is_that_of_torch(sizes: tuple[int, ...]) -> None:
    grid, x = draws(2, *sizes).double().requires_grad_(), 1.2 * (2 * uniform(RNG("x"), 50, len(sizes)) - 1).double()
    place = x.flip(-1).view(1, *(1,) * (len(sizes) - 1), -1, len(sizes))  # torch's first coordinate is the last axis
    truth = F.grid_sample(grid[None], place, padding_mode="zeros", align_corners=False).view(2, -1)
    torch.testing.assert_close(sample(grid, x), truth)
    weights = draws(2, 50, name="weights").double()
    mine, theirs = (torch.autograd.grad((found * weights).sum(), grid)[0] for found in (sample(grid, x), truth))
    torch.testing.assert_close(mine, theirs)


def test_doubling_is_that_of_torch() -> None:
    grid = draws(2, 3, 4, 5).double()
    truth = F.interpolate(grid[None], scale_factor=2, mode="trilinear", align_corners=True)[0]
    torch.testing.assert_close(doubled(grid), truth)


def test_a_demodulated_convolution_is_one_of_scaled_channels_over_the_norm_of_its_weights() -> None:
    layer, x, style = Convolution(RNG, 3, 4, 3), draws(3, 5, 5, 5), draws(256, name="style")
    scale = F.linear(style, layer.affine.weight / 16, layer.affine.bias)
    plain = F.conv3d((x * scale[:, None, None, None])[None], layer.weight, padding=1)[0]
    for channel in range(4):
        norm = sum((layer.weight[channel, i] * scale[i]).square().sum() for i in range(3)).sqrt()
        torch.testing.assert_close(layer(x, style)[channel], plain[channel] / norm, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(x, style), layer(x, 2 * style + 1))


def test_attention_is_that_of_torch() -> None:
    layer, truth = Attention(RNG, 8, WIDTH, 2), nn.MultiheadAttention(8, 2, bias=False, kdim=WIDTH, vdim=WIDTH)
    for mine, theirs in ((layer.query, truth.q_proj_weight), (layer.key, truth.k_proj_weight),
                         (layer.value, truth.v_proj_weight), (layer.output, truth.out_proj.weight)):
        theirs.data.copy_(mine)
    x, context = draws(5, 8), draws(4, WIDTH, name="context")
    torch.testing.assert_close(layer(x, context), truth(x, context, context)[0])


def test_planes_are_unfolded_as_by_a_transposed_convolution() -> None:
    made = tiny("Triplane")
    made.blocks = nn.ModuleList()
    tokens = made.norm(made.tokens).view(3, 3, 3, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(made.planes(text()), F.conv_transpose2d(tokens, made.upsample, stride=2))


def test_a_hypernetwork_with_spectral_norm_has_layers_of_norm_one() -> None:
    made, same = (HyperNetwork(RNG, WIDTH, 5, [(2, 3), (1, 2)], spectral_norm=normed) for normed in (True, False))
    for name in ("inner", "outer"):
        weight = getattr(same, name).data
        weight /= torch.linalg.svdvals(weight)[0]
    for mine, theirs in zip(made(text().pooled), same(text().pooled)):
        torch.testing.assert_close(mine, theirs)
    assert [tuple(matrix.shape) for matrix in made(text().pooled)] == [(2, 3), (1, 2)]


def test_an_object_of_hyper_ingp_is_two_networks_of_its_prompt_on_the_shared_encoding() -> None:
    made, x = tiny("HyperINGP"), 0.9 * (2 * uniform(RNG("x"), 20, 3) - 1)
    field, (into_sdf, sdf, into_features, features) = made.field(text(), None), made.hypernetwork(text().pooled)
    code = made.encoding((x.T + 1) / 2)
    torch.testing.assert_close(field.features(x), (features @ F.relu(into_features @ code)).T)
    torch.testing.assert_close(field.distance(x), (sdf @ F.relu(into_sdf @ code))[0] + x.norm(dim=-1) - 0.5)
    assert not torch.allclose(field.distance(x), made.field(text("other"), None).distance(x))


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_learns_and_values_are_those_of_the_field(name: str) -> None:
    made, x = tiny(name), 0.9 * (2 * uniform(RNG("x"), 64, 3) - 1)
    field = made.field(text(), RNG.of("step"))
    density, values = field.probe(x, normals=True)
    at = values(slice(None))
    torch.testing.assert_close(at.density, density)
    torch.testing.assert_close(at.features, field.features(x))
    torch.testing.assert_close(at.normals.norm(dim=1), torch.ones(64))
    (at.density.sum() + at.features.square().sum() + at.slope.square().sum()).backward()
    assert not [key for key, parameter in made.named_parameters() if parameter.grad is None or not parameter.grad.any()]


@pytest.mark.parametrize("name", CLASSES)
def test_slopes_are_the_gradient_of_the_distance(name: str) -> None:
    """Of an untrained generator with a smooth field: its grids are replaced by numbers that make no kink within a step."""
    field = tiny(name).field(text(), None)
    field.raw = lambda x: torch.cat([0.1 * torch.sin(3 * x[:, :1]).T, x.T])
    x = (0.9 * (2 * uniform(RNG("x"), 64, 3) - 1)).requires_grad_()
    (truth,) = torch.autograd.grad(field.distance(x).sum(), x)
    torch.testing.assert_close(field.evaluate(x.detach(), True).slope, truth, rtol=0, atol=0.03)


def test_latent_draws_of_3dconv_are_of_the_step_and_the_prompt() -> None:
    made = tiny("Conv3D")
    for parameter in made.named_parameters():
        if parameter[0].endswith("noise"):
            parameter[1].data.fill_(0.5)
    one, again, other, still = (made.grid(text(), rng) for rng in (RNG.of("a"), RNG.of("a"), RNG.of("b"), None))
    assert torch.equal(one, again) and not torch.allclose(one, other) and torch.equal(still, made.grid(text(), None))


def test_the_background_of_a_prompt_is_its_own() -> None:
    behind = HyperEnvironment(RNG, text_width=WIDTH, levels=2, hidden=8)
    scene = Scene(tiny("HyperINGP"), NoMaterial(), behind, VolSDF(proposal=8, importance=4))
    texts = [text(), text("other")]
    scene.texts = lambda prompt: texts[prompt]
    views = orbit(torch.tensor([0.0, 1.0]), 0.2, 3.0, 1.5, (6, 6)).under([1, 0])
    image = scene.render(views, 0, Streams(0, 0).part(range(2), 2))
    _, directions = views.rays()
    for row, prompt in enumerate(views.prompts):
        into, out = behind.hypernetwork(texts[prompt].pooled)
        code = behind.encoding(((directions[row].reshape(-1, 3).T + 1) / 2))
        torch.testing.assert_close(image.behind[row].view(-1, 3), (out @ F.relu(into @ code)).sigmoid().T)


@pytest.mark.mpi
@pytest.mark.parametrize("name", CLASSES)
def test_runs_give_the_same_bits_on_any_number_of_ranks(mpirun: Mpirun, tmp_path: Path, name: str) -> None:
    """Three prompts, two shards, latent draws."""
    guidance = {"use": "SDS", "prior": {"use": "ClosedForm"}, "prompts": {"use": "Plain"}, "scale": 2.0}
    term = {"name": "novel", "views": {"use": "Random", "batch": 3, "size": 8}, "guidance": guidance,
            "penalties": {"eikonal": 0.1, "sparsity": 0.1, "z_variance": 0.1}}
    tree = {"prompts": ["a red ball", "a blue ball", "a green ball"], "stages": [{
        "name": "generator", "steps": 6, "shape": {"use": name, "radius": 1.0, "text_width": 3, **TINY[name]},
        "material": {"use": "NoMaterial"}, "background": {"use": "HyperEnvironment", "text_width": 3, "levels": 2, "hidden": 8},
        "render": {"use": "VolSDF", "proposal": 16, "importance": 8}, "optimiser": {"use": "Adan", "lr": 0.004},
        "terms": [term]}],
        "window": {"threshold": 0, "shards": 2, "size": 3}, "turntable": {"frames": 1, "size": 16}, "mesh": {"resolution": 8},
        "preview": {"every_s": 0}}
    (tmp_path / "run.yaml").write_text(yaml.dump(tree))
    for n in (0, 3):
        done = mpirun(n, "run", tmp_path / "run.yaml", "--out", tmp_path / str(n))
        assert done.returncode == 0, done.stderr
    assert flat(tmp_path / "0") == flat(tmp_path / "3")


def test_a_width_of_text_that_the_prior_does_not_have_is_one_line(mpirun: Mpirun, tmp_path: Path) -> None:
    done = mpirun(0, "run", "toy", "stages.0.shape={use: HyperINGP, log2_table: 8}", "stages.0.render={use: VolSDF}",
                  "--out", tmp_path / "run")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "stages.0.shape.text_width: got 1024, and the prior's text has width 3; set text_width: 3" in done.stderr
