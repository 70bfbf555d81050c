"""A sweep's runs spread over eight devices are those of one device."""

import jax
import pytest

from jaxanom.jobs.sweep import runner

MEASURED = ("accuracy", "nll", "ece", "spread", "ksd", "train_ce")


def test_runs_spread_over_devices_end_as_on_one(sweep_config, tmp_path):
    assert len(jax.devices()) == 8
    found = {}
    for devices in (8, 1):
        config = sweep_config(sweep__num_particles=(2,), data__batch_size=8)
        config.mesh.data = devices
        if devices == 1:
            config.mesh.data, config.mesh.model = 1, 8
        found[devices] = runner.run(config, tmp_path / str(devices))
    assert len(found[8]) == 4, "fewer runs than devices: places are filled up"
    for one, other in zip(found[8], found[1], strict=True):
        for name in MEASURED:
            # Sums in another order.
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name
