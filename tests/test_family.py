"""The family of score distillation: each objective against its definition, written out for one render after the other, on a
mixture of Gaussians; what they have in common; and each on ranks, in parts and when stopped."""

import json
import math
from pathlib import Path

import pytest
import torch
from mixture import Mixture, Told, exact, sample_of
from stopped import MPI, ended, follow
from torch import Tensor

from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Theta
from mpiprop.guidance.asd import ASD
from mpiprop.guidance.bridge import Bridge
from mpiprop.guidance.cds import CDS
from mpiprop.guidance.csd import CSD
from mpiprop.guidance.distillation import Distillation, Sample
from mpiprop.guidance.ism import ISM
from mpiprop.guidance.nfsd import NFSD
from mpiprop.guidance.queries import answered
from mpiprop.guidance.sdi import SDI
from mpiprop.guidance.sds import SDS
from mpiprop.guidance.sjc import SJC
from mpiprop.guidance.vsd import VSD
from mpiprop.run.stage import Stage
from mpiprop.transport.sharded import Sharded

B = 5
TEXTS = {"negative_text": "bad", "inversion_text": "other", "target": "prompt", "source": "bad", "plain": "prompt"}
WHOLE = {"conditional": 2.0, "negative": -0.5, "unconditional": -1.0, "noise": -0.5}
MEMBERS: dict[str, tuple[type[Distillation], dict]] = {
    "SDS": (SDS, {}), "SJC": (SJC, {}), "SJC, raw": (SJC, {"var_red": False}), "CSD": (CSD, {}), "CSD, whole": (CSD, WHOLE),
    "ASD": (ASD, {}), "NFSD": (NFSD, {}), "ISM": (ISM, {}), "SDI": (SDI, {"t_min": 0.1, "t_max": 0.9}), "CDS": (CDS, {}),
    "Bridge": (Bridge, {})}


def member(name: str, prediction: str = "epsilon", **keys) -> Distillation:
    cls, own = MEMBERS[name]
    return cls(Mixture(prediction), Told(), **(own | keys))


def drawn(guidance: Distillation, tau: int = 0, negatives: tuple[str, ...] = ()) -> Sample:
    """B renders at the timesteps that the guidance draws."""
    rng = Streams(0, tau).part(range(B), B)
    x = torch.randn(B, 2, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sample_of(guidance.prior, x, guidance.timesteps(B, tau, rng), rng, negatives, tau, **TEXTS)


class One:
    """One render of a sample, with every prediction as the definition has it."""

    def __init__(self, sample: Sample, b: int) -> None:
        self.sample, self.b = sample, slice(b, b + 1)
        self.x, self.noise, self.t = sample.x[self.b], sample.eps[self.b], int(sample.t[b])

    def levels(self, t: int) -> tuple[Tensor, Tensor]:
        bar = self.sample.prior.alpha_bar[t].view(1)
        return bar.sqrt(), (1 - bar).sqrt()

    def noised(self, t: int, noise: Tensor) -> Tensor:
        alpha, sigma = self.levels(t)
        return alpha * self.x + sigma * noise

    def eps(self, x_t: Tensor, t: int, text: str) -> Tensor:
        told = self.sample.condition
        inputs = {"prompt": told.positive, "": told.unconditional} | told.texts
        return exact(x_t, *self.levels(t), inputs[text]["text"][self.b])

    def guided(self, x_t: Tensor, t: int, scale: float) -> Tensor:
        uncond, cond = (self.eps(x_t, t, text) for text in ("", "prompt"))
        return uncond + scale * (cond - uncond)

    def ddim(self, x_t: Tensor, eps: Tensor, t: int, s: int) -> Tensor:
        (alpha, sigma), (alpha_s, sigma_s) = self.levels(t), self.levels(s)
        return alpha_s * (x_t - sigma * eps) / alpha + sigma_s * eps


def sds(one: One, guidance: SDS) -> Tensor:
    return one.guided(one.noised(one.t, one.noise), one.t, 101) - one.noise


def raw(one: One, guidance: SJC) -> Tensor:
    return one.guided(one.noised(one.t, one.noise), one.t, 101)


def csd(one: One, guidance: CSD) -> Tensor:
    x_t = one.noised(one.t, one.noise)
    return one.eps(x_t, one.t, "prompt") - one.eps(x_t, one.t, "")


def csd_whole(one: One, guidance: CSD) -> Tensor:
    x_t = one.noised(one.t, one.noise)
    cond, negative, uncond = (one.eps(x_t, one.t, text) for text in ("prompt", "negative_text", ""))
    return 2 * cond - 0.5 * negative - uncond - 0.5 * one.noise


def asd(one: One, guidance: ASD) -> Tensor:
    later = int(guidance.shifted(one.sample)[one.b])
    return (one.guided(one.noised(one.t, one.noise), one.t, 7.5)
            - one.eps(one.noised(later, one.noise), later, "prompt"))


def nfsd(one: One, guidance: NFSD) -> Tensor:
    x_t = one.noised(one.t, one.noise)
    cond, uncond = one.eps(x_t, one.t, "prompt"), one.eps(x_t, one.t, "")
    domain = uncond if one.t < 200 else uncond - one.eps(x_t, one.t, "negative_text")
    return domain + 7.5 * (cond - uncond)


def ism(one: One, guidance: ISM) -> Tensor:
    s, t = max(one.t - 100, 0), 0
    shared = one.sample.rng.rows("noise.channel", normal, B, 2, 1, 1)[one.b]
    x_t = one.noised(0, one.noise + 0.1 * shared)
    while t < s:
        x_t, t = one.ddim(x_t, one.eps(x_t, t, "inversion_text"), t, min(t + 200, s)), min(t + 200, s)
    eps = one.eps(x_t, s, "inversion_text")
    return one.guided(one.ddim(x_t, eps, s, one.t), one.t, 7.5) - eps


def sdi(one: One, guidance: SDI) -> Tensor:
    x_t, t, k = one.x, 0, 0
    while t < one.t:
        s = min(t + 100, one.t)
        bar, bar_s = (self ** 2 for self in (one.levels(t)[0], one.levels(s)[0]))
        deviation = ((1 - bar) / (1 - bar_s) * (1 - bar_s / bar)).sqrt()
        noise = one.sample.noise(f"inversion.{k}")[one.b]
        x_t, t, k = one.ddim(x_t, one.guided(x_t, t, -7.5), t, s) + 0.3 * deviation * noise, s, k + 1
    alpha, sigma = one.levels(one.t)
    return one.guided(x_t, one.t, 7.5) - (x_t - alpha * one.x) / sigma


def cds(one: One, guidance: CDS) -> Tensor:
    tau = one.sample.tau
    s = round(1000 * (0.7 - 0.6 * math.sqrt(tau / 3000)))
    x_t = one.noised(one.t, normal(Streams(0, 0)("noise.shared"), 1, 2, 1, 1))  # of all renders and steps
    far = one.guided(x_t, one.t, 51)
    return far - one.guided(one.ddim(x_t, far, one.t, s), s, 51)


def bridge(one: One, guidance: Bridge) -> Tensor:
    x_t = one.noised(one.t, one.noise)
    return one.eps(x_t, one.t, "target") - one.eps(x_t, one.t, "source")


NAIVE = {"SDS": sds, "SJC": sds, "SJC, raw": raw, "CSD": csd, "CSD, whole": csd_whole, "ASD": asd, "NFSD": nfsd, "ISM": ism,
         "SDI": sdi, "CDS": cds, "Bridge": bridge}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("tau", [0, 750])
def test_an_objective_is_its_definition(name, tau):
    guidance = member(name, **({"interval": 0.1, "per_sample_t": True} if name == "ISM" else {}))
    sample = drawn(guidance, tau)
    found = answered(guidance.residual(sample))
    expected = torch.cat([NAIVE[name](One(sample, b), guidance).view(1, 2, 1, 1) for b in range(B)])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # noise levels are float32
    assert found.abs().amax((1, 2, 3)).min() > 1e-3


W = {"SDS": "sds", "SJC": "uniform", "CSD": "sds", "ASD": "sds", "NFSD": "sds", "ISM": "snr", "SDI": "snr", "CDS": "uniform",
     "Bridge": "uniform"}


@pytest.mark.parametrize("name", W)
def test_the_gradient_is_the_residual_weighted_as_published(name):
    guidance = member(name)
    sample = drawn(guidance)
    bar = guidance.prior.alpha_bar[sample.t].view(-1, 1, 1, 1)
    w = {"sds": 1 - bar, "uniform": 1.0, "snr": ((1 - bar) / bar).sqrt()}[W[name]]
    torch.testing.assert_close(guidance.gradient(sample), w * answered(guidance.residual(sample)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("prediction", ["v_prediction", "flow"])
def test_what_a_network_predicts_makes_no_difference(name, prediction):
    """The same mixture told as noise, as v, and as the velocity of a rectified flow at the same ratio of noise to picture."""
    found = [guidance.gradient(drawn(guidance)) for guidance in (member(name), member(name, prediction))]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def calls(guidance: Distillation, tau: int = 0, negatives: tuple[str, ...] = ()) -> tuple[float, Sample]:
    """Predictions that it asks for, for each render."""
    sample = drawn(guidance, tau, negatives)
    answered(guidance.residual(sample))
    return guidance.prior.asked / B, sample


@pytest.mark.parametrize("name, cost, with_perp_neg", [
    ("SDS", 2, 4), ("SJC", 2, 4), ("CSD", 2, 4), ("CSD, whole", 3, 5), ("ASD", 3, 5), ("NFSD", 3, 5), ("CDS", 4, 8),
    ("Bridge", 2, 2)])
def test_cost_in_predictions(name, cost, with_perp_neg):
    assert calls(member(name))[0] == cost and calls(member(name), 0, ("bad", "other"))[0] == with_perp_neg


def test_cost_of_inversion():
    ism, sample = calls(member("ISM"))
    assert ism == math.ceil((int(sample.t[0]) - 100) / 200) + 1 + 2
    sdi, sample = calls(member("SDI", t_min=0.45, t_max=0.45))
    assert sdi == 2 * 5 + 2


def test_csd_with_the_weights_of_sds_is_sds():
    guidance = member("CSD", conditional=101, unconditional=-100, noise=-1)
    torch.testing.assert_close(guidance.gradient(drawn(guidance)), member("SDS").gradient(drawn(guidance)))
    assert torch.equal(member("SJC").gradient(drawn(guidance)), member("SDS", weighting="uniform").gradient(drawn(guidance)))


def test_without_an_interval_ism_is_csd_times_the_scale():
    """Of its own points: with one text for the inversion and against, what it takes away is the unconditional prediction."""
    guidance = member("ISM", interval=0.0, scale=1.0)
    sample = sample_of(guidance.prior, torch.randn(B, 2, 1, 1), torch.full((B,), 300), Streams(0, 0), inversion_text="")
    at_1 = answered(guidance.residual(sample))
    guidance.scale = 7.5
    torch.testing.assert_close(answered(guidance.residual(sample)), 7.5 * at_1, rtol=1e-4, atol=1e-4)


def test_cds_without_a_gap_and_a_bridge_to_itself_are_nothing():
    assert not member("CDS", gap=(0.0, 0.0)).gradient(drawn(member("CDS", gap=(0.0, 0.0)))).any()
    guidance = member("Bridge")
    same = sample_of(guidance.prior, torch.randn(B, 2, 1, 1), torch.full((B,), 300), target="bad", source="bad")
    assert not guidance.gradient(same).any()


def test_vsd_is_sds_where_the_renders_are_one_picture_and_their_score_is_known():
    """Of one picture x, the noise in x_t is (x_t - alpha x) / sigma: the noise that was added."""
    class Known:
        def __init__(self, sample: Sample) -> None:
            self.sample = sample

        def network(self, tau: int) -> "Known":
            return self

        def eps(self, x_t: Tensor, t: Tensor, text: Tensor, camera: Tensor) -> Tensor:
            bar = self.sample.prior.alpha_bar[t].view(-1, 1, 1, 1)
            return (x_t - bar.sqrt() * self.sample.x) / (1 - bar).sqrt()
    sample = drawn(member("SDS"))
    vsd = VSD(sample.prior, Told(), Known(sample), scale=101)
    torch.testing.assert_close(vsd.gradient(sample), member("SDS").gradient(sample), rtol=1e-4, atol=1e-4)


def test_normalised_gradients_have_the_size_of_one_view_each():
    guidance = member("CSD", normalise=True, weighting="uniform")
    sizes = guidance.gradient(drawn(guidance)).flatten(1).norm(dim=1)
    torch.testing.assert_close(sizes, torch.ones(B, dtype=torch.float64))


def test_settings_that_make_no_sense_are_told():
    guidance = member("CSD", negative=[[0, 0.0], [100, -1.0]], unconditional=[[0, -1.0], [200, 0.0]])
    guidance.check(None, 0)
    with pytest.raises(UserError, match="negative -1, unconditional -0.5, noise 0 at step 100: need a sum of 0"):
        guidance.check(None, 100)
    with pytest.raises(UserError, match="interval 2 at step 0"):
        member("ISM", interval=2.0).check(None, 0)
    for name, keys, says in (("ISM", {"stride": 0.0}, "stride 0"), ("SDI", {"inversion_steps": 0}, "inversion_steps 0"),
                             ("CDS", {"gap": (0.3, 0.1)}, "gap")):
        with pytest.raises(UserError, match=says):
            member(name, **keys)


RUNS = {  # on the prior known in closed form; two views of a step are denoised apart
    **{name: {"use": name} for name in ("SJC", "CSD", "ASD", "NFSD", "ISM", "SDI", "CDS", "Bridge")},
    "CSD, whole": {"use": "CSD", **WHOLE, "normalise": True}, "ISM, per view": {"use": "ISM", "per_sample_t": True},
    "ASD, Perp-Neg": {"use": "ASD", "prompts": {"use": "Four", "perp_neg": 0.5}}}


def words(name: str, *more: str) -> list[str]:
    """A short run of the toy with that guidance."""
    guidance = {"prior": {"use": "ClosedForm", "size": 8}, "prompts": {"use": "Four"}} | RUNS[name]
    return ["prompt=a red ball", f"stages.0.terms.0.guidance={json.dumps(guidance)}", "stages.0.steps=6",
            "stages.0.terms.0.views.batch=3", "stages.0.terms.0.views.size=8", "stages.0.render.samples=16",
            "stages.0.optimiser.lr=0.05", "turntable={frames: 1, size: 8}", "mesh={resolution: 8, texture: 0}",
            "window.shards=2", *more]


@pytest.mark.parametrize("name", RUNS)
def test_parts_add_up_to_the_batch(name):
    stage = Stage(loader.load("toy", words(name, "stages.0.terms.0.views.batch=5")), 0, torch.device("cpu"))
    unit, layout = stage.unit(stage.embeddings()), stage.scene.layout
    theta = Theta(stage.scene.theta().flat + 0.01 * torch.randn(layout.L, generator=torch.Generator().manual_seed(1)), layout)
    whole = unit(theta, 3)
    grad, told = whole.grad.clone(), whole.scalars[RUNS[name]["use"].lower()]
    for parts in (2, 5):
        shared = Sharded(unit, parts)(theta, 3)
        assert (shared.grad - grad).norm() < 1e-4 * grad.norm()
        assert shared.scalars[RUNS[name]["use"].lower()] == pytest.approx(told, rel=1e-4)


@pytest.fixture(scope="module")
def sequential(tmp_path_factory) -> dict[str, bytes]:
    """How each run ends, one step after the other."""
    found, root = {}, tmp_path_factory.mktemp("sequential")
    for i, name in enumerate(RUNS):
        assert follow("toy", words(name, "window.size=1"), root / str(i), False)
        found[name] = ended(root / str(i))
    assert len({bits for *_, bits in found.values()}) == len(RUNS)
    return found


@pytest.mark.parametrize("name", RUNS)
def test_stopped_after_every_other_slide_it_ends_with_the_bits_of_the_sequential_method(name, sequential, tmp_path):
    stops = 0
    while not follow("toy", words(name, "window.threshold=0", "window.size=3"), tmp_path / "run", True):
        stops += 1
    assert ended(tmp_path / "run") == sequential[name] and stops > 1


@pytest.mark.mpi
def test_begun_alone_and_gone_on_with_by_groups_of_ranks_all_end_with_the_bits_of_the_sequential_method(
        sequential, mpirun, tmp_path):
    runs: list[tuple[str, list[str], Path]] = [
        ("toy", words(name, "window.threshold=0", "window.size=3"), tmp_path / str(i)) for i, name in enumerate(RUNS)]
    assert not any(follow(*run, True) for run in runs)
    done = mpirun(3, json.dumps(runs, default=str), program=("-c", MPI), timeout=400)
    assert done.returncode == 0, done.stderr
    assert {name: ended(run[2]) for name, run in zip(RUNS, runs)} == sequential
