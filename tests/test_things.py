"""Every thing of the corpus is a solid inside its ball, seen where the truth says, in the colours that the truth gives."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mpiprop.corpus.captions import VIEWS, caption
from mpiprop.corpus.colours import COLOURS, LOOKS, MATERIALS, matrix
from mpiprop.corpus.objects import NAMES, RADIUS, SHAPES, Thing, held_out, thing
from mpiprop.corpus.truth import truth
from tools.dataset import SIZE, TOKENS, draw_inside, draw_shots, load_tokenizer, text_sizes, tracer_of, write_tokenizer
from tools.tracer import Shots, Tracer, still

FOVY = math.radians(45)


tracer = functools.cache(tracer_of)  # of a name, on a table or not


def shots(*degrees: tuple[float, float]) -> Shots:
    return still(torch.deg2rad(torch.tensor(degrees)), 1.7, FOVY)


def directions(count: int) -> Tensor:
    """Unit vectors [3, count], evenly over the sphere by a golden spiral."""
    z = 1 - (2 * torch.arange(count) + 1) / count
    angle, flat = torch.arange(count) * math.pi * (3 - 5**0.5), (1 - z * z).sqrt()
    return torch.stack([flat * angle.cos(), flat * angle.sin(), z])


def rays(view: Shots, size: int) -> tuple[Tensor, Tensor]:
    """Origin [3] and unit directions [3, size^2] of one camera that looks at the origin, row by row from the top left."""
    a, e = float(view.azimuth), float(view.elevation)
    outward = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = torch.tensor([-math.sin(a), math.cos(a), 0.0])
    up = torch.linalg.cross(outward, right)
    steps = (torch.arange(size) + 0.5 - size / 2) * 2 * math.tan(float(view.fovy) / 2) / size
    rows = -outward + steps[None, :, None] * right - steps[:, None, None] * up
    return float(view.distance) * outward, F.normalize(rows.reshape(-1, 3), dim=-1).T


@pytest.mark.parametrize("name", SHAPES)
def test_an_object_fills_its_ball_and_stays_inside(name: str) -> None:
    solid, sphere = thing(name), directions(4000)
    assert float(solid.distance(1.01 * RADIUS * sphere).min()) > 0  # closed: nothing reaches out of the ball
    shells = torch.cat([r * sphere for r in torch.linspace(0.02, 1, 50) * RADIUS], dim=1)
    inside = shells[:, solid.distance(shells) < 0]
    assert inside.shape[1] > 500 and float(inside.norm(dim=0).max()) > 0.9 * RADIUS
    assert (inside.amin(dim=1) >= torch.tensor(solid.low) - 0.03).all()
    assert (inside.amax(dim=1) <= torch.tensor(solid.high) + 0.03).all()


@pytest.mark.parametrize("name", ["car", "duck", "umbrella", "pumpkin", "castle", "gift"])
def test_views_show_what_a_walk_along_each_ray_meets(name: str) -> None:
    """Against the plainest tracer: small steps through the signed distance, no grid, no sphere tracing."""
    view, size, solid = shots((35, 20)), 24, thing(name)
    origin, direction = rays(view, size)
    steps = torch.arange(1.7 - RADIUS, 1.7 + RADIUS, 0.004)
    points = origin[:, None, None] + direction[:, :, None] * steps
    inside = torch.cat([solid.distance(some.reshape(3, -1)).reshape(-1, len(steps)) < 0.001
                        for some in points.split(64, dim=1)])
    met, first = inside.any(dim=1), steps[inside.int().argmax(dim=1)]
    depth = tracer(name, False).depth(view, size).flatten()
    assert (depth.isfinite() == met).float().mean() > 0.985
    both, forward = depth.isfinite() & met, -(direction * origin[:, None]).sum(dim=0) / 1.7
    assert ((depth - first * forward)[both].abs() < 0.02).float().mean() > 0.97


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_without_shade_has_the_colours_of_the_truth(name: str) -> None:
    things = tracer(name, False)
    view = draw_inside(1, torch.Generator().manual_seed(0)) if name == "room" else shots((30, 20))
    bright = Shots(**(vars(view) | {"ambient": torch.ones(1), "centre": torch.zeros(1, 3)}))
    layers = things.trace(bright, SIZE)
    origin, direction = rays(bright, 2 * SIZE)
    depth = things.depth(bright, 2 * SIZE).flatten()
    seen = depth.isfinite()
    forward = -(direction * origin[:, None]).sum(dim=0) / float(bright.distance)
    points = origin[:, None] + direction * (depth / forward)
    for look in ("green", "striped", "wooden"):
        true = torch.ones(len(depth), 3)
        true[seen] = things.thing.colour(points[:, seen], look)
        true = F.avg_pool2d(true.reshape(1, 2 * SIZE, 2 * SIZE, 3).movedim(-1, 1), 2)[0].movedim(0, -1)
        found = layers.over(matrix(look)[None], torch.ones(3))[0]
        assert (found - true).abs().mean() < 0.004


def test_every_object_has_parts_of_its_own_colour_beside_the_named_one() -> None:
    for name in SHAPES:
        views = tracer(name, False).trace(shots((20, 15), (110, 20), (200, 40)), 32)
        share = views.named[..., 0].sum() / views.alpha.sum()
        assert 0.15 < share < 1 and (name == "table" or views.values[..., :3].amax(dim=-1).max() > 0.2), name


def test_objects_stay_inside_the_frame() -> None:
    for number, name in enumerate(SHAPES):
        alpha = tracer(name, False).trace(draw_shots(4, torch.Generator().manual_seed(number)), 32).alpha
        assert alpha.mean(dim=(1, 2, 3)).min() > 0.03 and ((alpha > 0) & (alpha < 1)).any(), name
        assert alpha[:, [0, -1]].sum() + alpha[:, :, [0, -1]].sum() == 0, name


def test_azimuth_is_not_mirrored() -> None:
    """The mug's handle is on +y: at the picture's right from the front, at its left from behind."""
    alpha = tracer("mug", False).trace(shots((0, 0), (180, 0))).alpha[..., 0] > 0.5
    for picture, side in zip(alpha, (1, -1)):
        rows = torch.nonzero(picture)[:, 0]
        top, bottom = picture[rows.min() + 2], picture[(rows.min() + rows.max()) // 2]  # above the handle, through it
        middle = [float(torch.nonzero(row)[:, 0].float().mean()) for row in (top, bottom)]
        assert side * (middle[1] - middle[0]) > 2


@pytest.mark.parametrize("name", ["chair", "car", "house", "snowman", "rocket", "duck", "boat", "cat", "fish", "robot",
                                  "train", "penguin", "elephant", "bear", "sofa", "pumpkin", "mug", "helicopter"])
def test_front_and_back_differ_in_the_objects_that_have_a_front(name: str) -> None:
    front, back = tracer(name, False).trace(shots((0, 5), (180, 5))).over(matrix("green")[None], torch.ones(3))
    assert ((front - back).abs().amax(dim=-1) > 0.25).sum() > 40


def test_an_object_on_a_table_stands_on_it_and_has_its_own_look() -> None:
    both = thing("duck", on_table=True)
    own, table = len(both.parts) - both.support, both.parts[-both.support:]
    layers = tracer("duck", True).trace(shots((30, 20)))
    red, blue, green = (matrix(look)[None] for look in ("red", "blue", "green"))
    white = torch.ones(3)
    repainted = (layers.over(red, white, blue) - layers.over(red, white, green)).abs().amax(dim=-1)[0] > 0.1
    renamed = (layers.over(red, white, blue) - layers.over(green, white, blue)).abs().amax(dim=-1)[0] > 0.1
    assert repainted.sum() > 100 and renamed.sum() > 100 and (repainted & renamed).sum() < 0.2 * renamed.sum()
    assert torch.nonzero(renamed)[:, 0].float().mean() < torch.nonzero(repainted)[:, 0].float().mean() - 10  # above it
    column = torch.stack([torch.zeros(400), torch.zeros(400), torch.linspace(-RADIUS, RADIUS, 400)])
    top = column[2, Thing(table, both.middle, both.scale).distance(column) < 0].max()
    bottom = column[2, Thing(both.parts[:own], both.middle, both.scale).distance(column) < 0].min()
    assert abs(float(top - bottom)) < 0.05


def test_the_room_surrounds_its_cameras() -> None:
    views = draw_inside(6, torch.Generator().manual_seed(1))
    layers, depth = tracer("room", False).trace(views, 24), tracer("room", False).depth(views, 24)
    assert layers.alpha.min() == 1 and depth.isfinite().all() and layers.named[..., 0].mean() > 0.1


def test_views_are_the_same_every_time() -> None:
    first, second = (Tracer(thing("teapot")).trace(shots((10, 10))).values for _ in range(2))
    assert torch.equal(first, second)


def test_looks_are_many_and_tell_apart() -> None:
    assert len(COLOURS) == 12 and MATERIALS == ("wooden", "golden", "striped")
    layers = tracer("mug", False).trace(shots((30, 20)))
    pictures = torch.stack([layers.over(matrix(look)[None], torch.ones(3))[0] for look in LOOKS])
    apart = (pictures[:, None] - pictures).abs().amax(dim=-1).mean(dim=(2, 3)) + torch.eye(len(LOOKS))
    assert apart.min() > 0.03


def test_three_looks_of_each_name_are_held_out_and_each_look_of_some() -> None:
    missing = [held_out(name) for name in NAMES]
    assert all(len(set(looks)) == 3 for looks in missing)
    assert {look for looks in missing for look in looks} == set(LOOKS)
    assert len(SHAPES) >= 24 and held_out("mushroom") == ("red", "blue", "grey")


def test_every_caption_is_whole_words_that_fit_the_tokenizer(tmp_path) -> None:
    from transformers import CLIPTokenizer

    write_tokenizer(tmp_path)
    tokenizer, tokens = CLIPTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    for i, name in enumerate(NAMES):
        text = caption(name, LOOKS[i % len(LOOKS)], VIEWS[i % len(VIEWS)], LOOKS[-1 - i % len(LOOKS)])
        assert [token.removesuffix("</w>") for token in tokenizer.tokenize(text)] == text.replace(",", " ,").split()
    longest = tokens([caption("hamburger", "orange", "front right view from above", "orange")])
    assert longest.shape == (1, TOKENS) and longest[0, -1] == text_sizes(tmp_path)["eos_token_id"]
    assert caption("apple", "orange", "front view", "green") == "an orange apple on a green table, front view"


def test_a_prompt_leads_to_its_true_object() -> None:
    assert truth("a corgi") is truth("a duck") is truth("a red duck and a blue car") is truth("a red duck, a cat") is None
    for text, name, table, looks in (("a photo of a red mushroom, back view", "mushroom", False, ("red", "")),
                                     ("An orange DUCK on a wooden table", "duck", True, ("orange", "wooden")),
                                     ("a blue room", "room", False, ("blue", ""))):
        found = truth(text)
        assert found is not None and found.thing is thing(name, table) and (found.look, found.table) == looks
    mushroom = truth("a red mushroom")
    assert mushroom is not None
    inside_cap, outside = torch.tensor([[0.3, 0.0, 0.15]]), torch.tensor([[0.5, 0.5, -0.4]])
    assert mushroom.distance(inside_cap) < 0 < mushroom.distance(outside)
    torch.testing.assert_close(mushroom.colour(inside_cap)[0], torch.tensor(COLOURS["red"]))
