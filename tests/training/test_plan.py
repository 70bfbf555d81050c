"""What counts as another run."""

from jaxanom.training import plan


def test_other_keys_that_come_or_go_are_changes():
    assert plan.changes({"method": "a"}, {}) == ["method: now 'a', then 'absent'"]
    assert plan.changes({}, {"config.data.name": 1}) == [
        "config.data.name: now 'absent', then 1"
    ]
