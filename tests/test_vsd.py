"""Variational score distillation: against SDS, merged weights and the frozen network; the three policies to the bit."""

import json
import time

import pytest
import tiny_models
import torch
import yaml
from finished import flat
from torch import Tensor

from mpiprop.run import checkpoint
from mpiprop.config import loader
from mpiprop.core import schedules
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.core.theta import Theta
from mpiprop.guidance.sds import SDS
from mpiprop.guidance.vsd import VSD
from mpiprop.priors.closed_form import ClosedForm
from mpiprop.priors.diffusion import DeepFloyd, StableDiffusion
from mpiprop.priors.lora import Lora, _shapes
from mpiprop.conditioning.text import Four, TextConditions
from mpiprop.run.stage import Stage
from mpiprop.transport.serial import Serial
from mpiprop.transport.sharded import Sharded
from mpiprop.views.cameras import Image, Views, orbit
from mpiprop.views.samplers import milestone

SD21 = dict(attention_head_dim=[5, 10, 20, 20], block_out_channels=[320, 640, 1280, 1280], cross_attention_dim=1024,
            sample_size=64, use_linear_projection=True)
POLICIES = {"shared": [], "private": ["lora.loras=3"], "averaged": ["lora.loras=3", "lora.average_every=4"]}
SMALL = ["prompt=a red mushroom", "stages.0.steps=10", "stages.0.terms.0.views.size=8", "stages.0.terms.0.views.batch=2",
         "stages.0.render.samples=24", "stages.0.shape.levels=3", "stages.0.shape.log2_table=8",
         "stages.0.shape.occupancy_resolution=8", "preview.every_s=0", "turntable={frames: 1, size: 8}", "mesh.resolution=8"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {kind: str(tiny_models.make(kind, root / kind)) for kind in ("sd", "sd-v", "if")}


def prior_of(folders: dict[str, str], kind: str) -> StableDiffusion | DeepFloyd:
    return (DeepFloyd if kind == "if" else StableDiffusion)("cpu", model=folders[kind])


def views_of(B: int) -> Views:
    return orbit(torch.linspace(-3, 3, B), torch.linspace(-0.2, 1.3, B), 1.8, 0.8, (8, 8))


def render(B: int, size: int = 8) -> Image:
    rgb = torch.rand(B, size, size, 3, generator=torch.Generator().manual_seed(5)).requires_grad_()
    return Image(rgb, torch.ones(B, size, size, 1), torch.ones(B, size, size, 1))


def question(prior, B: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_t, t, text, camera."""
    rng = torch.Generator().manual_seed(1)
    x_t = torch.randn(B, prior.config["in_channels"], 8, 8, generator=rng)
    text = torch.randn(B, 5, tiny_models.WIDTH, generator=rng)
    return x_t, torch.tensor([20, 700, 400])[:B], text, torch.randn(B, 16, generator=rng)


def randomised(lora: Lora, seed: int = 3) -> Lora:
    rng = torch.Generator().manual_seed(seed)
    for numbers in lora.parameters():
        numbers.data = 0.2 * torch.randn(numbers.shape, generator=rng)
    return lora


def test_the_adapter_of_stable_diffusion_2_has_the_published_size():
    adapter, camera = (sum(torch.Size(shape).numel() for shape in shapes.values()) for shapes in _shapes(SD21, 4))
    assert (adapter, camera) == (829_952, 1_661_440)


class Exact:
    """The score of a single picture, known exactly: whatever makes x_t of x0 is the noise."""

    def __init__(self, prior: ClosedForm, x0: Tensor) -> None:
        self.prior, self.x0 = prior, x0.double()

    def network(self, tau: int) -> "Exact":
        return self

    def eps(self, x_t: Tensor, t: Tensor, text: Tensor, camera: Tensor) -> Tensor:
        bar = self.prior.alpha_bar[t].view(-1, 1, 1, 1)
        return ((x_t - bar.sqrt() * self.x0) / (1 - bar).sqrt()).float()

    def loss(self, *question: object, **inputs: object) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize("keys", [{}, {"weighting": "uniform", "grad_clip": 0.05}, {"cfg": "A", "per_sample_t": False}])
def test_with_the_exact_score_of_one_picture_vsd_is_sds(keys):
    prior = ClosedForm("cpu", size=8)
    prompts, one, two = TextConditions.of(prior, Four(), "a red chair"), render(5), render(5)
    SDS(prior, prompts, **{"scale": 7.5, "cfg": "B"} | keys)(one, views_of(5), 3, Streams(1, 3))[0].backward()
    exact = Exact(prior, prior.encode(two.rgb.detach().permute(0, 3, 1, 2), Streams(1, 3)))
    VSD(prior, prompts, exact, **keys)(two, views_of(5), 3, Streams(1, 3))[0].backward()
    assert one.rgb.grad.abs().max() > 1e-3
    torch.testing.assert_close(two.rgb.grad, one.rgb.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd", "sd-v", "if"])
def test_a_new_adapter_adds_nothing_and_a_trained_one_leaves_the_frozen_network_alone(folders, kind):
    prior = prior_of(folders, kind)
    x_t, t, text, camera = question(prior)
    frozen = prior.eps(x_t, t, text)
    lora = Lora(prior, Streams(0, 0))
    assert torch.equal(lora.network(0).eps(x_t, t, text, camera), frozen)
    trained = randomised(lora).network(0).eps(x_t, t, text, camera)
    assert (trained - frozen).abs().max() > 1e-2
    assert torch.equal(prior.eps(x_t, t, text), frozen)
    assert (lora.network(0).eps(x_t, t, text, -camera) - trained).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["sd", "sd-v"])
def test_an_adapter_is_what_merging_it_into_the_weights_gives(folders, kind):
    """up @ down added to each weight, and the camera's embedding to the bias of the time's, in a network of its own."""
    prior, plain = prior_of(folders, kind), prior_of(folders, kind)
    x_t, t, text, camera = question(prior, 1)
    lora = randomised(Lora(prior, Streams(0, 0)))
    numbers = {name: part.view(shape) for shapes, flat in ((lora.adapter, lora.lanes[0]["adapter"].detach()),
                                                           (lora.camera, lora.lanes[0]["camera"].detach()))
               for (name, shape), part in zip(shapes.items(), flat.split([torch.Size(s).numel() for s in shapes.values()]))}
    for name, down in numbers.items():
        if ".lora_A." in name:
            layer = plain.unet.get_submodule(name.partition(".lora_A.")[0])
            layer.weight.data += numbers[name.replace("lora_A", "lora_B")] @ down
    w1, b1, w2, b2 = (numbers[f"class_embedding.linear_{i}.{what}"] for i in (1, 2) for what in ("weight", "bias"))
    hidden = torch.nn.functional.silu(w1 @ camera[0] + b1)
    plain.unet.time_embedding.linear_2.bias.data += w2 @ hidden + b2
    expected = plain.eps(x_t, t, text)
    torch.testing.assert_close(lora.network(0).eps(x_t, t, text, camera), expected, atol=1e-4, rtol=1e-4)
    noise, bar = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(2)), prior.alpha_bar[t].float().item()
    error = plain.eps(bar ** 0.5 * x_t + (1 - bar) ** 0.5 * noise, t, text) - noise
    factor = bar if kind == "sd-v" else 1.0  # v's error is that of the noise divided by alpha
    assert lora.loss(x_t, t, noise, text, camera, 0).item() == pytest.approx(error.square().mean().item() / factor, rel=1e-3)


def test_the_loss_rises_along_its_gradient_which_lies_in_the_steps_own_adapter(folders):
    prior = prior_of(folders, "sd")
    lora = randomised(Lora(prior, Streams(0, 0), loras=3))
    x_t, t, text, camera = question(prior)
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(2))
    lora.loss(x_t.requires_grad_(), t, noise, text, camera, 7).backward()
    assert x_t.grad is None and [lane["adapter"].grad is None for lane in lora.lanes] == [True, False, True]
    for part in ("adapter", "camera"):
        numbers = lora.lanes[1][part]
        step, losses = 1e-2 * numbers.grad / numbers.grad.norm(), []
        for sign in (1, -1):
            numbers.data += sign * step
            losses.append(lora.loss(x_t, t, noise, text, camera, 7).item())
            numbers.data -= sign * step
        assert losses[0] - losses[1] == pytest.approx(2e-2 * numbers.grad.norm().item(), rel=0.02)


def test_half_precision_gives_the_gradient_of_single(folders):
    """The loss's gradient is far below what half precision holds; the adapter's numbers stay in single."""
    found = []
    for dtype in ("float32", "float16"):
        prior = StableDiffusion("cpu", model=folders["sd"], dtype=dtype)
        lora = randomised(Lora(prior, Streams(0, 0)))
        x_t, t, text, camera = question(prior)
        (1e-4 * lora.loss(x_t, t, torch.ones_like(x_t), text, camera, 0)).backward()
        found.append({part: numbers.grad for part, numbers in lora.lanes[0].items()})
    for part, grad in found[0].items():
        assert (found[1][part] - grad).norm() < 0.05 * grad.norm()


def test_neither_gradient_enters_the_other(folders):
    prior = prior_of(folders, "sd")
    lora, prompts = randomised(Lora(prior, Streams(0, 0))), TextConditions.of(prior, Four(), "a red chair")
    found = {}
    for scale, weight in ((7.5, 1.0), (7.5, 0.0), (50.0, 1.0)):
        image = render(2, 16)
        lora.zero_grad()
        VSD(prior, prompts, lora, scale=scale, lora_weight=weight)(image, views_of(2), 3, Streams(1, 3))[0].backward()
        found[scale, weight] = image.rgb.grad, lora.lanes[0]["adapter"].grad.clone()
    assert torch.equal(found[7.5, 1.0][0], found[7.5, 0.0][0]) and not found[7.5, 0.0][1].any()
    assert torch.equal(found[7.5, 1.0][1], found[50.0, 1.0][1]) and found[7.5, 1.0][1].abs().max() > 0
    assert not torch.equal(found[7.5, 1.0][0], found[50.0, 1.0][0])


HOST = "stages.0.terms.0.guidance.lora.prior={{use: StableDiffusion, model: {}}}"


def test_an_adapter_of_another_network_that_is_the_same_changes_nothing(folders, tmp_path):
    """The same weights in another folder, for the LoRA alone: the same gradient to the bit, from another object."""
    copy = tiny_models.make("sd", tmp_path / "again")
    found = []
    for more in ([], [HOST.format(copy)]):
        stage = stage_of(folders, "private", *more)
        unit, theta = stage.unit(stage.embeddings()), stage.scene.theta()
        found.append(unit(theta, 2).grad.clone())
    assert stage.lora.prior is not unit.terms[0].guidance.prior and torch.equal(*found)


def test_an_adapter_may_be_of_a_network_that_predicts_v(folders):
    """What the renders look like to it is its own network's noise, with nothing learnt yet; the target keeps its own."""
    stage = stage_of(folders, "shared", HOST.format(folders["sd-v"]))
    guidance, host = stage.unit(stage.embeddings()).terms[0].guidance, prior_of(folders, "sd-v")
    assert (guidance.prior.prediction, guidance.lora.prior.prediction) == ("epsilon", "v_prediction")
    x_t, t, text, camera = question(host)
    assert torch.equal(guidance.lora.network(0).eps(x_t, t, text, camera), host.eps(x_t, t, text))
    assert not torch.equal(guidance.prior.eps(x_t, t, text), host.eps(x_t, t, text))


def test_a_network_that_reads_something_else_than_the_prior_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match=r"terms.0.guidance.lora: prior: its network reads latents of 3 channels, the "):
        stage_of(folders, "shared", HOST.format(folders["if"]).replace("StableDiffusion", "DeepFloyd"))
    tiny_models.make("sd", tmp_path / "wide")
    told = json.loads((tmp_path / "wide/unet/config.json").read_text())
    (tmp_path / "wide/unet/config.json").write_text(json.dumps(told | {"cross_attention_dim": 24}))
    with pytest.raises(UserError, match=r"lora: prior: its network reads texts of width 24, the guidance's prior texts of "):
        stage_of(folders, "shared", HOST.format(tmp_path / "wide"))


def test_what_cannot_be_adapted_is_refused():
    with pytest.raises(UserError, match="a prior of text with a network to adapt"):
        Lora(ClosedForm("cpu"), Streams(0, 0))
    with pytest.raises(UserError, match="class labels"):
        _shapes(SD21 | {"class_embed_type": "timestep"}, 4)


def test_prolificdreamers_numbers():
    stage = loader.load("prolificdreamer").stages[0]
    (term,) = stage.terms
    at = {name: [schedules.at(schedule, tau) for tau in (0, 5000, 5001, 10_000, 10_001, 24_999)]
          for name, schedule in {"t_max": term.guidance.keys["t_max"], **term.penalties}.items()}
    assert at == {"t_max": [0.98, 0.98, 0.5, 0.5, 0.5, 0.5], "sparsity": [10] * 6, "opaque": [0, 0, 0, 0, 1000, 1000]}
    assert [milestone(term.views.keys["batch"], tau) for tau in (0, 4999, 5000)] == [8, 8, 2]
    assert [milestone(term.views.keys["size"], tau) for tau in (0, 4999, 5000)] == [64, 64, 512]
    guidance, optimiser = term.guidance.keys, stage.optimiser.keys
    assert (guidance["scale"], guidance["cfg"], guidance["weighting"], guidance["t_min"]) == (7.5, "B", "sds", 0.02)
    assert (guidance["lora_weight"], guidance["camera_drop"], guidance["lora"].keys["rank"]) == (1.0, 0.1, 4)
    assert optimiser["lr"]["lora"] == 1e-4 and optimiser["weight_decay"] == 0.01 and stage.steps == 25_000


def test_prolificdreamer_has_the_papers_parameters(folders):
    scene = Stage(loader.load("prolificdreamer", [f"stages.0.terms.0.guidance.prior.model={folders['sd']}"]), 0,
                  torch.device("cpu")).scene
    spans = scene.layout.groups
    assert spans["lora"].start == 12_604_720 and scene.renderer.ray_spacing(scene.shape) == pytest.approx(0.00676563, rel=1e-5)


def overrides(folders: dict[str, str], policy: str, *more: str) -> list[str]:
    term = "stages.0.terms.0.guidance."
    return [*SMALL, f"{term}prior.model={folders['sd']}", *(term + key for key in POLICIES[policy]), *more]


def stage_of(folders: dict[str, str], policy: str, *more: str) -> Stage:
    return Stage(loader.load("demo/prolificdreamer", overrides(folders, policy, *more)), 0, torch.device("cpu"))


def slides(stage: Stage, window=None):
    unit, rollout = stage.unit(stage.embeddings()), stage.rollout()
    window = window or stage.open_window(rollout, stage.scene.theta())
    return stage.propel(rollout)(window, Serial(unit, lambda: False), rollout, T=stage.T)


@pytest.fixture(scope="module")
def sequential(folders) -> dict[str, Theta]:
    """theta_T of each policy, one step after the other."""
    return {policy: list(slides(stage_of(folders, policy, "window.size=1")))[-1].x.theta for policy in POLICIES}


@pytest.mark.parametrize("policy", POLICIES)
def test_threshold_zero_is_the_sequential_method_and_a_saved_window_goes_on(folders, sequential, tmp_path, policy):
    stage = stage_of(folders, policy, "window.threshold=0", "window.size=4")
    windows = slides(stage)
    halfway = next(window for window in windows if window.x.tau >= 5)
    checkpoint.save(tmp_path / "window.h5", checkpoint.Checkpoint(halfway, "coarse", 0, ""))
    assert torch.equal(list(windows)[-1].x.theta.flat, sequential[policy].flat)
    again = checkpoint.load(tmp_path / "window.h5").window
    assert again.x.theta.layout == stage.scene.layout
    assert torch.equal(list(slides(stage_of(folders, policy, "window.threshold=0"), again))[-1].x.theta.flat,
                       sequential[policy].flat)


def test_policies_differ_in_the_adapters_that_they_train(folders, sequential):
    first = stage_of(folders, "private").scene.theta()
    lanes = {policy: theta.flat[theta.layout.groups["lora"]].view(-1, first.layout.turns("lora", 0)[0][0].stop -
                                                                  first.layout.groups["lora"].start)
             for policy, theta in sequential.items()}
    assert {policy: len(lane) for policy, lane in lanes.items()} == {"shared": 1, "private": 3, "averaged": 3}
    spread = {policy: (lane - lane.mean(0)).abs().max().item() for policy, lane in lanes.items()}
    assert spread["shared"] == 0 < spread["averaged"] < spread["private"]
    start = first.flat[first.layout.groups["lora"]].view(3, -1)
    assert torch.equal(start[0], start[1]) and all((lane - start[0]).abs().max() > 0 for lane in lanes["private"])


def test_lanes_are_averaged_when_due_and_nothing_else_changes(folders):
    scene = stage_of(folders, "averaged").scene
    theta = Theta(torch.randn(scene.layout.L, generator=torch.Generator().manual_seed(1)), scene.layout)
    lora = scene.layout.groups["lora"]
    assert scene.refresh(theta, 5, Streams(0, 5)) is theta
    fresh = scene.refresh(theta, 4, Streams(0, 4)).flat
    assert torch.equal(fresh[:lora.start], theta.flat[:lora.start]) and torch.equal(fresh[lora.stop:], theta.flat[lora.stop:])
    mean = theta.flat[lora].view(3, -1).double().mean(0)
    torch.testing.assert_close(fresh[lora].view(3, -1).double(), mean.expand(3, -1))


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_add_up_to_the_batch(folders, parts):
    stage = stage_of(folders, "private", "stages.0.terms.0.views.batch=5")
    unit, theta = stage.unit(stage.embeddings()), stage.scene.theta()
    whole = unit(theta, 4)
    grad, told = whole.grad.clone(), dict(whole.scalars)
    shared = Sharded(unit, parts)(theta, 4)
    for span in stage.scene.layout.groups.values():
        assert (shared.grad[span] - grad[span]).norm() <= 1e-4 * grad[span].norm()
    assert shared.scalars["lora"] == pytest.approx(told["lora"], rel=1e-4)


@pytest.mark.mpi
@pytest.mark.parametrize("host", [None, "sd-v"], ids=["own", "of v"])
def test_ranks_and_a_resumed_run_give_the_bits_of_one_process(launch, mpirun, folders, sequential, tmp_path, host):
    more = [HOST.format(folders[host])] if host else []
    tree = loader.read("demo/prolificdreamer", overrides(folders, "averaged", *more, "window.threshold=0", "window.size=2"))
    (tmp_path / "coarse.yaml").write_text(yaml.safe_dump(tree | {"stages": tree["stages"][:1], "mesh": {"resolution": 8}}))
    arguments = ("run", tmp_path / "coarse.yaml", "checkpoint.every_s=0", "--out", tmp_path / "run", "--resume")
    process, metrics = launch(3, *arguments), tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 2):
        time.sleep(0.02)
    (tmp_path / "run" / "stop").touch()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    done = mpirun(2, *arguments)
    assert done.returncode == 0, done.stderr
    alone = sequential["averaged"] if not host else list(
        slides(stage_of(folders, "averaged", *more, "window.size=1")))[-1].x.theta
    assert flat(tmp_path / "run") == alone.flat.numpy().tobytes()
    assert {"vsd", "lora"} <= set(json.loads(metrics.read_text().splitlines()[-1]))
