"""What counts as another run."""

from jaxanom.training import plan


def test_a_setting_that_the_older_checkpoint_did_not_know_had_its_default():
    now = {"config.train.seed": 0, "config.phases.a.rate_factors": []}
    then = {"config.train.seed": 0}
    assert plan.changes(now, then) == [] == plan.changes(then, now)
    now["config.phases.a.rate_factors"] = [["x", 2.0]]
    assert plan.changes(now, then) == [
        "config.phases.a.rate_factors: now [['x', 2.0]], then []"
    ]


def test_other_keys_that_come_or_go_are_changes():
    assert plan.changes({"method": "a"}, {}) == ["method: now 'a', then 'absent'"]
    assert plan.changes({}, {"config.data.name": 1}) == [
        "config.data.name: now 'absent', then 1"
    ]
