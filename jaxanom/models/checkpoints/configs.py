"""Reads a published config.json into a config dataclass; refuses what is unknown."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from jaxanom.errors import UserError


def read(
    config_class: type,
    raw: Mapping[str, Any],
    fixed: Mapping[str, Any],
    ignored: Collection[str] = (),
) -> Any:
    """Builds `config_class` from the keys of a config.json.

    Args:
      config_class: A dataclass whose field names are keys of the file.
      raw: The parsed file; lists become tuples.
      fixed: Keys we know but do not vary -> the one value they may have.
      ignored: Keys that change nothing here; names starting with "_" always are.

    Raises:
      UserError: a key is unknown, or a fixed key has another value.
    """
    names = {field.name for field in dataclasses.fields(config_class)}
    fields = {}
    for name, value in raw.items():
        value = tuple(value) if isinstance(value, list) else value
        if name in names:
            fields[name] = value
        elif name in fixed:
            if value != fixed[name]:
                raise UserError(
                    f"{name}={value!r} is not supported by {config_class.__name__}; "
                    f"only {name}={fixed[name]!r} is: choose another checkpoint"
                )
        elif name not in ignored and not name.startswith("_"):
            raise UserError(
                f"{config_class.__name__} does not know the key {name!r} "
                f"(value {value!r}); remove it if it changes nothing"
            )
    return config_class(**fields)


def write(config: Any, class_name: str, **extra: Any) -> dict[str, Any]:
    """Returns the dict of a config.json that `read` takes back; tuples become lists."""
    fields = {"_class_name": class_name, **dataclasses.asdict(config), **extra}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in fields.items()
    }


def per_block(value: Any, num_blocks: int, name: str) -> tuple[Any, ...]:
    """Spreads one value over all blocks, or checks that there is one for each."""
    values = value if isinstance(value, tuple) else (value,) * num_blocks
    if len(values) != num_blocks:
        raise UserError(
            f"{name}={values} has {len(values)} entries for {num_blocks} blocks; give "
            "one per entry of block_out_channels, or a single value"
        )
    return values


def require(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises UserError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise UserError(f"{name}={value!r} is not supported; use one of {allowed}")
