"""What a run will do: the settings of the loop, and its phases in order."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom import sections
from jaxanom.contracts import Method, Phase
from jaxanom.errors import UserError
from jaxanom.training import optimizer


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of `config.train`; `configs/common.py` has their defaults.

    Attributes:
      seed: Decides initial parameters and every draw while training.
      log_every: Steps between rows of metrics; only there is the device read.
      checkpoint_every: Steps between checkpoints; 0 leaves the one at a phase's end.
      keep: Newest checkpoints that are kept; 0 keeps all.
      keep_best: Checkpoints kept beside those, the best by the selection's measure.
      ema_decay: Decay of the moving average of parameters, in [0, 1); 0 keeps none.
      nan_patience: Steps in a row without a finite gradient at which training stops,
        seen at the next row of metrics; skipped steps leave the parameters as they are.
      offload_frozen: Whether what no phase trains stays in the host's memory; a step
        brings to the device what it uses, and what it does not use never takes room
        there.
      peak_flops: Operations per second of one device, for the utilisation; 0 leaves it
        out.
    """

    seed: int
    log_every: int
    checkpoint_every: int
    keep: int
    keep_best: int
    ema_decay: float
    nan_patience: int
    offload_frozen: bool
    peak_flops: float


def read_train(section: Mapping[str, Any]) -> TrainConfig:
    """Reads `config.train`.

    Raises:
      UserError: See `sections.read`; or a value is out of range.
    """
    settings = sections.read(section, TrainConfig, "config.train")
    lowest = {"log_every": 1, "nan_patience": 1}
    lowest |= {"checkpoint_every": 0, "keep": 0, "keep_best": 0}
    optimizer.check_lowest(settings, lowest, "config.train")
    if not 0 <= settings.ema_decay < 1:
        raise UserError(
            f"config.train.ema_decay={settings.ema_decay}; want 0 (off) to below 1"
        )
    return settings


class Stage(NamedTuple):
    """A phase that will be trained.

    Attributes:
      phase: The method's phase.
      config: Its settings.
      index: Its place among the method's phases.
      offset: Global step at which it starts.
    """

    phase: Phase
    config: optimizer.OptimizerConfig
    index: int
    offset: int

    @property
    def name(self) -> str:
        """The phase's name."""
        return self.phase.name


def stages(method: Method, phases_config: Mapping[str, Any]) -> list[Stage]:
    """Pairs each phase of a method with its settings, in order.

    A phase with num_steps 0 is left out.

    Raises:
      UserError: settings without a phase, or a phase without settings.
    """
    names = [phase.name for phase in method.phases]
    for name in phases_config:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1) or names[:1]
            raise UserError(
                f"config.phases.{name} is no phase of this method; did you mean "
                f"config.phases.{near[0]}? phases: {names}"
            )
    trained, offset = [], 0
    for index, phase in enumerate(method.phases):
        if phase.name not in phases_config:
            raise UserError(
                f"config.phases.{phase.name} is missing; num_steps=0 skips the phase"
            )
        config = optimizer.read(
            phases_config[phase.name], f"config.phases.{phase.name}"
        )
        if config.num_steps:
            trained.append(Stage(phase, config, index, offset))
        offset += config.num_steps
    return trained


def identity(
    config: TrainConfig, stages: list[Stage], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns, flat and as JSON values, what decides the parameters a run ends in."""
    settings: dict[str, Any] = {
        "config.train.seed": config.seed,
        "config.train.ema_decay": config.ema_decay,
    }
    for stage in stages:
        for key, value in dataclasses.asdict(stage.config).items():
            settings[f"config.phases.{stage.name}.{key}"] = value
    # As a checkpoint gives it back: tuples become lists.
    return json.loads(json.dumps(settings | dict(extra)))


def changes(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Lists the settings in which two identities differ, for a message."""
    return [
        f"{key}: now {now.get(key, 'absent')!r}, then {then.get(key, 'absent')!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key, "absent") != then.get(key, "absent")
    ]
