"""What a run will do: the settings of the loop, and its phases in order."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxanom.contracts import Method, Phase
from jaxanom.errors import UserError
from jaxanom.training import optimizer


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of `config.train`.

    Attributes:
      seed: of initial parameters and of every draw while training.
      log_every: steps between rows of metrics; only there is the device read.
      eval_every: steps between evaluations; 0 leaves the one at the end of a phase.
      checkpoint_every: steps between checkpoints; 0 leaves the one at a phase's end.
      keep: newest checkpoints that are kept; 0 keeps all.
      keep_best: checkpoints kept beside those, the best by the selection's measure.
      ema_decay: of the moving average of parameters, in [0, 1); 0 keeps none.
      nan_patience: steps in a row without a finite gradient at which training stops,
        seen at the next row of metrics; skipped steps leave the parameters as they are.
      offload_frozen: keep what no phase trains in the host's memory; a step brings to
        the device what it uses, and what it does not use never takes room there.
      peak_flops: of one device, per second, for the utilisation; 0 leaves it out.
    """

    seed: int = 0
    log_every: int = 50
    eval_every: int = 0
    checkpoint_every: int = 1000
    keep: int = 2
    keep_best: int = 0
    ema_decay: float = 0.0
    nan_patience: int = 10
    offload_frozen: bool = False
    peak_flops: float = 0.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TrainConfig":
        """Reads `config.train`.

        Raises:
          UserError: an unknown key, a value of another type or out of range.
        """
        settings = optimizer.read_settings(cls, config, "config.train")
        lowest = {"log_every": 1, "nan_patience": 1, "eval_every": 0}
        lowest |= {"checkpoint_every": 0, "keep": 0, "keep_best": 0}
        for name, low in lowest.items():
            if getattr(settings, name) < low:
                raise UserError(
                    f"config.train.{name}={getattr(settings, name)}; want {low} or more"
                )
        if not 0 <= settings.ema_decay < 1:
            raise UserError(
                f"config.train.ema_decay={settings.ema_decay}; want 0 (off) to below 1"
            )
        return settings


class Stage(NamedTuple):
    """A phase that will be trained.

    Attributes:
      phase: from the method.
      config: its settings.
      index: its place among the method's phases.
      offset: global step at which it starts.
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
    found, offset = [], 0
    for index, phase in enumerate(method.phases):
        if phase.name not in phases_config:
            raise UserError(
                f"config.phases.{phase.name} is missing; num_steps=0 skips the phase"
            )
        config = optimizer.OptimizerConfig.from_config(
            phases_config[phase.name], f"config.phases.{phase.name}"
        )
        if config.num_steps:
            found.append(Stage(phase, config, index, offset))
        offset += config.num_steps
    return found


def identity(
    config: TrainConfig, stages: list[Stage], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns, flat and as JSON values, what decides the parameters a run ends in."""
    found: dict[str, Any] = {
        "config.train.seed": config.seed,
        "config.train.ema_decay": config.ema_decay,
    }
    for stage in stages:
        for key, value in dataclasses.asdict(stage.config).items():
            found[f"config.phases.{stage.name}.{key}"] = value
    return _as_read_back(found | dict(extra))


def changes(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Lists the settings in which two identities differ, for a message.

    A phase's setting that one of them does not know had its default: it was added to
    the optimiser after the checkpoint was written.
    """
    defaults = _as_read_back(dataclasses.asdict(optimizer.OptimizerConfig()))

    def value(identity: Mapping[str, Any], key: str) -> Any:
        if key.startswith("config.phases."):
            return identity.get(key, defaults.get(key.rpartition(".")[2], "absent"))
        return identity.get(key, "absent")

    return [
        f"{key}: now {value(now, key)!r}, then {value(then, key)!r}"
        for key in sorted(now.keys() | then.keys())
        if value(now, key) != value(then, key)
    ]


def _as_read_back(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON values: tuples become lists."""
    return json.loads(json.dumps(dict(values)))
