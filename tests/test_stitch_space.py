"""The stitch space: published counts, positions, routes, and their costs in closed form."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from suture import Code, SutureError
from suture.passes.stitch.positions import Windows, lockstep, nearest_blocks, paired, unpaired
from suture.passes.stitch.space import Costs, Hop, Route, route_cost, stitch_space

TWELVE = (12,)
OUTER_SKIPPED = Windows(skipped_stages=(0, -1))


@pytest.mark.parametrize(
    ("depths", "options", "routes"),
    [
        ([TWELVE] * 3, {}, 71),  # SN-Net, DeiT-Ti/S/B: 3 anchors and 2 x 34 stitches
        ([TWELVE] * 3, {"nearest": False}, 732),  # and without nearest stitching: 3 + 3 x 34 + 627 chains of three
        ([TWELVE] * 3, {"nearest": False, "stitches": 1}, 105),
        ([TWELVE] * 3, {"stitches": 2}, 698),
        ([(2, 2, 6, 2), (2, 2, 18, 2), (2, 2, 18, 2)], {}, 41),  # SN-Net, Swin-Ti/S/B
        ([(2, 2, 6, 2), (2, 2, 18, 2)], {}, 21),
        ([(2, 2, 2, 2), (3, 4, 6, 3)], {"windows": OUTER_SKIPPED}, 10),  # SN-Net, ResNet-18/50
        ([(2, 2, 2, 2), (2, 2, 6, 2)], {"windows": OUTER_SKIPPED}, 8),  # SN-Net, ResNet-18 to Swin-Ti
        ([(2, 3, 4), (4, 4, 4)], {}, 8),  # SN-Net, LeViT-128S to LeViT-192
        ([TWELVE] * 2, {"two_way": True}, 135),  # SN-Netv2, DeiT3-S/B
        ([TWELVE, (24,)], {"two_way": True}, 135),  # SN-Netv2, DeiT3-B/L
    ],
)
def test_published_spaces_have_their_size(depths, options, routes):
    assert len(stitch_space(depths, **options)) == routes


def test_a_window_of_two_over_twelve_blocks_has_34_positions_in_11_layers():
    found = paired(12)
    assert len(found) == 34
    assert {p.layer for p in found} == set(range(11))
    assert all(abs(p.exit - p.entry) <= 1 for p in found)


def test_swin_pairs_have_19_positions_each():
    stitches = stitch_space([(2, 2, 6, 2), (2, 2, 18, 2), (2, 2, 18, 2)]).stitches
    assert [len(places) for places in stitches.values()] == [19, 19]
    assert all(p.entry > p.exit for places in stitches.values() for p in places)
    assert max(p.entry for p in stitches[1, 2]) == 21  # the last stage begins at block 22


@given(depth=st.integers(1, 14), kernel=st.integers(1, 5), stride=st.integers(1, 4), forwards=st.booleans())
def test_paired_positions_are_all_pairs_inside_some_window(depth, kernel, stride, forwards):
    windows = [range(s, min(s + kernel, depth)) for s in range(0, depth, stride)]
    wanted = {(i, k) for w in windows for i in w for k in w if k > i or not forwards}
    found = paired(depth, kernel, stride, forwards=forwards)
    assert {(p.exit, p.entry) for p in found} == wanted
    assert len(found) == len(wanted)
    for p in found:  # a position belongs to the first window that holds it
        first = next(k for k, w in enumerate(windows) if p.exit in w and p.entry in w)
        others = {q.layer for q in found if q.exit in windows[first] and q.entry in windows[first]}
        assert p.layer == max(others)


@given(shallow=st.integers(1, 20), more=st.integers(0, 20))
def test_nearest_blocks_are_those_of_nearest_interpolation(shallow, more):
    numbers = torch.arange(shallow, dtype=torch.float32)[None, None]
    wanted = F.interpolate(numbers, shallow + more)[0, 0].long().tolist()
    assert list(nearest_blocks(shallow, shallow + more)) == wanted


def test_unpaired_positions_lie_beside_each_other_and_go_forwards():
    beside = nearest_blocks(12, 24)
    found = unpaired(12, 24)
    assert {(p.exit, p.entry) for p in found} == {(beside[k], k) for k in range(1, 24)}
    assert {(p.exit, p.entry) for p in unpaired(24, 12)} == {(2 * m + 1, m + 1) for m in range(11)}


def test_lockstep_goes_on_behind_the_counterpart():
    assert [(p.exit, p.entry) for p in lockstep(3, 6, to_head=True)] == [(0, 2), (1, 4), (2, 6)]
    assert [(p.exit, p.entry) for p in lockstep(6, 3)] == [(1, 1), (3, 2)]


def test_two_way_routes_are_12_there_11_back_and_55_of_each_return():
    routes = stitch_space([TWELVE, (24,)], two_way=True).routes
    kinds = [tuple(hop.anchor for hop in route.hops) for route in routes]
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert counts == {(0,): 1, (1,): 1, (0, 1): 12, (1, 0): 11, (1, 0, 1): 55, (0, 1, 0): 55}


def test_chains_run_at_least_one_block_of_each_anchor_between_stitches():
    for route in stitch_space([(3,), (3,), (3,)], nearest=False).routes:
        assert all(hop.end > hop.first for hop in route.hops[:-1])
        assert [hop.anchor for hop in route.hops] == sorted({hop.anchor for hop in route.hops})


def test_without_nearest_stitching_every_chain_of_anchors_is_there():
    kinds = {tuple(hop.anchor for hop in route.hops) for route in stitch_space([(2,)] * 4, nearest=False).routes}
    assert kinds == {chain for length in range(1, 5) for chain in combinations(range(4), length)}


def test_the_other_direction_and_both():
    back = stitch_space([(2,), (2,)], direction="slow_to_fast")
    assert set(back.stitches) == {(1, 0)}
    both = stitch_space([(4,), (4,)], direction="both")
    assert set(both.stitches) == {(0, 1), (1, 0)}
    assert all(p.entry > p.exit for places in both.stitches.values() for p in places)


def test_anchors_come_first_from_the_cheapest_on():
    routes = stitch_space([(2,), (3,)]).routes
    assert [route.hops for route in routes[:2]] == [(Hop(0, 0, 2),), (Hop(1, 0, 3),)]
    assert not any(route.is_anchor for route in routes[2:])


def test_the_cost_of_a_route_is_the_sum_of_its_parts():
    anchors = [Costs(1, (10, 20, 30), 2), Costs(3, (100, 200, 300), 4)]
    route = Route((Hop(0, 0, 2), Hop(1, 1, 3)), (0,))
    assert route_cost(route, anchors, {((0, 1), 0): 7}) == 1 + 10 + 20 + 7 + 200 + 300 + 4


def test_layers_of_several_kinds_of_positions_are_divided():
    space = stitch_space([(4,), (4,)]).separate(lambda pair, place: place.entry >= 2)
    for places in space.layers[0, 1].values():
        assert len({p.entry >= 2 for p in places}) == 1
    assert len(space) == len(stitch_space([(4,), (4,)]))


@pytest.mark.parametrize(
    ("depths", "options", "says"),
    [
        ([TWELVE], {}, "1 anchor"),
        ([(2, 0), (2, 2)], {}, "a stage without blocks"),
        ([(2, 2), (4,)], {}, "2 and 1 stages"),
        ([(2,), (2,)], {"stitches": 0}, "stitches=0"),
        ([(2,)] * 3, {"two_way": True}, "two-way stitching of 3 anchors"),
        ([(12,), (18,)], {"two_way": True}, "18 blocks do not run in step with 12"),
        ([(2,), (2,)], {"two_way": True, "direction": "both"}, "direction=both"),
    ],
)
def test_spaces_that_cannot_be_are_refused(depths, options, says):
    with pytest.raises(SutureError, match=says) as caught:
        stitch_space(depths, **options)
    assert caught.value.code is Code.STITCH


@pytest.mark.parametrize("name", ["kernel", "stride"])
def test_windows_need_positive_numbers(name):
    with pytest.raises(SutureError, match=f"{name}=0"):
        Windows(**{name: 0})
