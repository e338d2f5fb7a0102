"""Values of the engine: layouts of flat vectors, points that are gathered, memory that is used again."""

import gc
import json
import tracemalloc

import pytest
import torch

from mpiprop.core import ancestry, memory
from mpiprop.core.streams import Streams, normal
from mpiprop.core.theta import Drift, Layout, State, Theta

POINTS = {"geometry.x": (3,), "geometry.sh": (0, 3), "geometry.r": (1,)}  # shapes of a point's rows
CLOUD = Layout.of([("colour", (2,), "background"), *((name, (4, *row), name) for name, row in POINTS.items()),
                   ("bias", (1,), "background")], [("grid", (5,))], {"background": 3}, POINTS)
OLD = """{"D": 19, "L": 19, "entries": [["geometry.x", [4, 3], 0, "geometry.x"], ["geometry.r", [4, 1], 12, "geometry.r"],
         ["background.c", [3], 16, "background"]], "N": 4}"""  # as version 0.1.0 wrote it


def test_groups_lie_side_by_side_and_what_is_not_trained_comes_last():
    assert [(entry.name, entry.offset) for entry in CLOUD.entries] == [
        ("colour", 0), ("bias", 2), ("geometry.x", 3), ("geometry.sh", 15), ("geometry.r", 15), ("grid", 19)]
    assert (CLOUD.D, CLOUD.L, CLOUD.N) == (19, 24, 4)
    assert CLOUD.groups == {"background": slice(0, 3), "geometry.x": slice(3, 15), "geometry.sh": slice(15, 15),
                            "geometry.r": slice(15, 19)}


@pytest.mark.parametrize("N", [1, 4, 9])
def test_a_layout_of_other_points_is_the_one_that_would_have_been_made(N):
    other = CLOUD.of_points(N)
    assert (other.D, other.L, other.N) == (3 + 4 * N, 8 + 4 * N, N) and other.of_points(4) == CLOUD
    assert CLOUD.of_length(8 + 4 * N) == other and other.lanes == CLOUD.lanes
    assert other.entries[2].shape == (N, 3) and other.entries[-1].span == slice(3 + 4 * N, 8 + 4 * N)


def test_layouts_survive_their_text_and_those_of_former_versions_are_read():
    assert Layout.from_json(CLOUD.to_json()) == CLOUD
    read = Layout.from_json(OLD)
    assert [entry.per_point for entry in read.entries] == [True, True, False] and read.of_points(6).D == 27
    plain = Layout.of([("geometry.x", (4, 3), "geometry.x")])
    assert not Layout.from_json(json.dumps({"D": 12, "L": 12, "entries": [["geometry.x", [4, 3], 0, "geometry.x"]]})
                                ).entries[0].per_point
    assert "per_point" not in plain.to_json()  # the text of a layout without points is what it always was


def test_rows_of_points_are_gathered_as_a_loop_would_do_it():
    """Of vectors [D] with numbers of no point between them, a width of zero included; -1 gives zeros."""
    flat, rows = normal(Streams(0, 0)("flat"), CLOUD.L), [2, -1, 0, 2, 3]
    x = flat[3:15].view(4, 3).tolist()
    r = flat[15:19].tolist()
    expected = [*flat[:3].tolist(), *(value for i in rows for value in (x[i] if i >= 0 else [0.0] * 3)),
                *(r[i] if i >= 0 else 0.0 for i in rows)]
    assert CLOUD.gather_points(flat[:CLOUD.D], torch.tensor(rows)).tolist() == expected
    theta = Theta(flat, CLOUD, ancestry.roots(4)).gather_points(torch.tensor(rows), torch.arange(5)[:, None])
    assert theta.flat.tolist() == expected + flat[19:].tolist() and theta.layout == CLOUD.of_points(5)
    state = State(3, Theta(flat, CLOUD, ancestry.roots(4)), {"m": flat[:19]}, {"seen": torch.arange(1.0, 5.0)})
    found = state.gather_points(theta, torch.tensor(rows))
    assert found.slots["m"].tolist() == expected and found.statistics["seen"].tolist() == [3, 0, 1, 3, 4] and found.tau == 3


@pytest.mark.parametrize("flat, ids", [(torch.zeros(23), 4), (torch.zeros(24, 1), 4), (torch.zeros(24), 5)])
def test_a_theta_that_does_not_fit_its_layout_is_refused(flat, ids):
    with pytest.raises(ValueError, match="L = 24, N = 4"):
        Theta(flat, CLOUD, ancestry.roots(ids))


def test_a_copied_state_has_moments_of_its_own_and_a_cloned_drift_has_all():
    state = State(0, Theta(torch.zeros(24), CLOUD, ancestry.roots(4)), {"m": torch.zeros(19)}, {"seen": torch.zeros(4)})
    copy = state.copy()
    copy.slots["m"].add_(1)
    assert not state.slots["m"].any() and copy.theta is state.theta
    drift = Drift(torch.zeros(19), {"loss": 1.0}, 2.0, {"seen": torch.zeros(4)})
    own = drift.clone()
    own.grad.add_(1)
    own.statistics["seen"].add_(1)
    assert not drift.grad.any() and not drift.statistics["seen"].any() and (own.scalars, own.seconds) == ({"loss": 1.0}, 2.0)


N = memory.LARGE + 3


def test_the_memory_of_a_large_vector_is_used_again_when_its_last_tensor_is_gone():
    first = memory.empty(N)
    place, view = first.data_ptr(), first[7:].view(-1, 4)
    assert place % memory.ALIGNMENT == 0 and first.shape == (N,) and first.dtype == torch.float32
    del first
    other = memory.zeros(N)
    assert other.data_ptr() != place  # a view still holds it
    numbers = view.numpy()
    del view
    assert memory.empty(N).data_ptr() != place  # numpy does
    del numbers
    gc.collect()
    places = {vector.data_ptr() for vector in (memory.empty(N), memory.empty(N))}
    assert place in places and other.data_ptr() not in places and not other.any()


def test_a_copy_is_apart_and_small_vectors_are_torchs():
    for n in (5, N):
        vector = torch.arange(float(n))
        copy = memory.copy(vector)
        copy[0] = -1
        assert torch.equal(copy[1:], vector[1:]) and vector[0] == 0


def test_growing_clouds_leave_no_block_of_every_size_behind():
    tracemalloc.start()
    for n in range(N, N + 5 * memory.SIZES):
        memory.empty(n)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 4 * N < held < 4 * N * (memory.SIZES + 1)
