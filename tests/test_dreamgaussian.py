"""What DreamGaussian does beside its losses: white or black backgrounds, which views densify, where the picture counts."""

from dataclasses import replace

import pytest
import torch
import yaml
from clouds import STAGE

from mpiprop.config import loader
from mpiprop.core.errors import UserError
from mpiprop.core.streams import Streams
from mpiprop.guidance.reference import Likeness
from mpiprop.run.stage import Stage
from mpiprop.appearance.backgrounds import Solid
from mpiprop.views.cameras import Image, orbit
from mpiprop.views.reference import Pose, Reference

POSE = Pose(azimuth=0.3, elevation=0.4, distance=2.0, fovy=0.8)
VIEWS = orbit(POSE.azimuth, POSE.elevation, POSE.distance, POSE.fovy, (6, 6))


def test_backgrounds_are_inverted_view_by_view_as_often_as_asked():
    directions, solid = torch.zeros(4, 3, 2, 3), Solid(Streams(0, 0), colour=(1.0, 0.9, 0.0), invert_prob=0.25)
    seen = torch.cat([solid(directions, Streams(0, tau)) for tau in range(200)])
    assert torch.equal(seen, seen[:, :1, :1].expand_as(seen))  # one colour a view
    own, other = (torch.isclose(seen[:, 0, 0], torch.tensor(colour)).all(-1) for colour in ((1.0, 0.9, 0.0), (0.0, 0.1, 1.0)))
    assert (own ^ other).all() and 0.19 < other.float().mean() < 0.31
    assert 0 < other.view(200, 4).float().mean(1).unique().numel() > 2  # views of one batch differ
    part = solid(directions[1:3], Streams(0, 7).part(range(1, 3), 4))
    assert torch.equal(part, solid(directions, Streams(0, 7))[1:3])
    assert torch.equal(solid(directions, None), torch.tensor([1.0, 0.9, 0.0]).expand(4, 3, 2, 3))


def unit(*terms: dict):
    tree = yaml.safe_load(STAGE)
    (term,) = tree["stages"][0]["terms"]
    tree["stages"][0]["terms"] = [term | keys for keys in terms]
    one = Stage(loader.parse(tree, "cloud"), 0, torch.device("cpu"))
    return one.unit(one.embeddings()), one.scene.theta()


def test_a_term_may_leave_densification_to_the_others():
    """Its gradient counts as ever; what was measured of the points is what the other terms alone measure."""
    both, theta = unit({"name": "novel"}, {"name": "other"})
    silent, _ = unit({"name": "novel"}, {"name": "other", "densify": False})
    alone, _ = unit({"name": "novel"})
    whole, found, first = (one(theta, 2) for one in (both, silent, alone))
    assert torch.equal(found.grad, whole.grad) and not torch.equal(found.grad, first.grad)
    assert set(found.statistics) == {"moves", "views"}
    for name, measured in found.statistics.items():
        assert not torch.equal(measured, whole.statistics[name])
        torch.testing.assert_close(measured, first.statistics[name])  # up to the order of sums


def test_the_picture_counts_where_the_surface_faces_the_camera():
    """The mean over all pixels of the masked square, by a loop over them; nothing else is pulled."""
    rng = torch.Generator().manual_seed(1)
    rgb, normal, behind = (torch.rand(1, 6, 6, 3, generator=rng) for _ in range(3))
    normal, rgba = torch.nn.functional.normalize(2 * normal - 1, dim=-1), torch.rand(6, 6, 4, generator=rng)
    rgb.requires_grad_()
    image = Image(rgb, torch.ones(1, 6, 6, 1), torch.ones(1, 6, 6, 1), normal, behind=behind)
    reference = Reference(*vars(POSE).values(), rgba=rgba)
    keys = {"rgb": 1.0, "mask": 0.0, "threshold": None}
    loss, told = Likeness(reference, **keys, facing=0.5)(image, VIEWS, 0, Streams(0, 0))
    towards = VIEWS.c2w[0, :3, 3] / VIEWS.c2w[0, :3, 3].norm()  # the axis of a camera that looks at the origin
    total, counted = 0.0, set()
    for i in range(6):
        for j in range(6):
            if float(normal[0, i, j] @ towards) > 0.5:
                counted.add((i, j))
                target = rgba[i, j, :3] * rgba[i, j, 3] + behind[0, i, j] * (1 - rgba[i, j, 3])
                total += (rgb[0, i, j] - target).square().sum().item()
    assert 3 < len(counted) < 30 and loss.item() == pytest.approx(total / (6 * 6 * 3), rel=1e-5)
    assert told["psnr"] == Likeness(reference, **keys)(image, VIEWS, 0, Streams(0, 0))[1]["psnr"]  # of the whole picture
    (grad,) = torch.autograd.grad(loss, rgb)
    assert {(int(i), int(j)) for _, i, j in grad.any(-1).nonzero()} == counted
    assert Likeness(reference, facing=0.5).reads_normals
    with pytest.raises(UserError, match="normal: the shape has no normals"):
        Likeness(reference, facing=0.5)(replace(image, normal=None), VIEWS, 0, Streams(0, 0))
    with pytest.raises(UserError, match=r"facing: needs a number in \[0, 1\), or null, got 1.5"):
        Likeness(reference, facing=1.5)
