"""Points of a sweep, and which of them are one program."""

import pytest

from jaxanom.jobs.sweep import grid

SECTION = {
    "num_particles": (1, 4),
    "update": ("map", "svgd"),
    "rkhs": ("rbf", "imq"),
    "step_size": (1.0, 0.1),
    "scale": {"svgd": 3.0},
    "seed": (0, 1, 2),
    "num_snapshots": 2,
    "prompts_together": 100,
    "development_seed": 0,
}


def changed(**values):
    return SECTION | values


def test_a_transport_without_an_rkhs_is_not_run_once_for_each():
    found = grid.points(SECTION)
    assert len(found) == len(set(found)) == 2 * (1 + 2) * 2 * 3
    assert {p.rkhs for p in found if p.update == "map"} == {"-"}
    assert {p.rkhs for p in found if p.update == "svgd"} == {"rbf", "imq"}


def test_the_scale_of_a_transport_multiplies_its_step_sizes():
    found = grid.points(SECTION)
    sizes = {u: {p.step_size for p in found if p.update == u} for u in ("map", "svgd")}
    assert sizes["map"] == {1.0, 0.1}
    assert sizes["svgd"] == {3.0, 3.0 * 0.1}


def test_all_points_of_one_particle_count_share_a_program():
    found = grid.groups(grid.points(SECTION), num_prompts=2, prompts_together=1000)
    assert [group.num_particles for group in found] == [1, 4]
    assert all(len(group.points) == 18 and len(group.variants) == 3 for group in found)


def test_the_memory_divides_them_evenly_and_none_is_lost():
    wanted = grid.points(SECTION)
    found = grid.groups(wanted, num_prompts=2, prompts_together=64)
    assert [len(group.points) for group in found] == [18, 6, 6, 6]
    assert sorted(p for group in found for p in group.points) == sorted(wanted)
    # Too little for a single point: one at a time, not none.
    assert len(grid.groups(wanted[:3], 50, 1)) == 3


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_particles": (0,)}, "num_particles"),
        ({"num_particles": ()}, "num_particles"),
        ({"update": ("stein",)}, "update"),
        ({"rkhs": ("laplace",)}, "rkhs"),
        ({"step_size": (-1.0,)}, "step_size"),
        ({"seed": (0.5,)}, "seed"),
        ({"scale": {"stein": 1.0}}, "scale.stein"),
        ({"num_snapshots": 0}, "num_snapshots"),
        ({"transports": ()}, "transports"),
    ],
)
def test_what_cannot_be_is_named(values, named):
    with pytest.raises(ValueError, match=named):
        grid.points(changed(**values))
