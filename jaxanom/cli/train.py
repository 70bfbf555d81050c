"""`jaxanom train --config=FILE.py[:ARG] --run=DIR --config.key=value ...`."""

import argparse
from typing import Any

from jaxanom.cli import profiling
from jaxanom.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's flags."""
    parser.add_argument(
        "--config",
        required=True,
        help="recipe, e.g. configs/defect_generation/folder.py",
    )
    parser.add_argument("--run", default="", help="directory of the run")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="print mesh, memory, arithmetic of each phase; train nothing; refuse "
        "what does not fit",
    )
    parser.add_argument(
        "--compile_only",
        action="store_true",
        help="the same for devices that need not be there (--topology, --devices); "
        "memory is checked only if --device_memory tells it",
    )
    parser.add_argument(
        "--topology",
        default="",
        help="of --compile_only: TPUs that are not attached, e.g. v5e:4x4 (libtpu)",
    )
    parser.add_argument(
        "--devices", type=int, default=0, help="simulate that many devices on the CPU"
    )
    parser.add_argument(
        "--device_memory", type=float, default=0.0, help="GiB of one device"
    )
    parser.add_argument(
        "--compile_cache",
        default="",
        help="directory that keeps compiled programs (JAX_COMPILATION_CACHE_DIR)",
    )
    profiling.add_argument(parser, "config.train.log_every steps of each phase")


def run(arguments: argparse.Namespace) -> None:
    """Trains, or goes on training, or tells what that would take."""
    from jaxanom.jobs import config_file

    forecasts = arguments.dry_run or arguments.compile_only
    if not (arguments.run or forecasts):
        raise UserError("--run=DIR is missing; only --dry_run needs no directory")
    if arguments.topology and not arguments.compile_only:
        raise UserError("--topology goes with --compile_only: nothing can run there")
    config = config_file.load(arguments.config, arguments.overrides)
    _set_up_jax(arguments)
    if forecasts:
        _forecast(arguments, config)
        return
    from jaxanom.jobs.train import train
    from jaxanom.parallel import distributed

    distributed.initialise()
    with profiling.steps(arguments.profile) as on_log:
        trained = train(config, arguments.run, on_log)
    print(f"trained: {trained.directory}")


def _set_up_jax(arguments: argparse.Namespace) -> None:
    import jax

    if arguments.compile_cache:
        jax.config.update("jax_compilation_cache_dir", arguments.compile_cache)
    if not arguments.devices:
        return
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    except RuntimeError as error:
        raise UserError(
            f"--devices={arguments.devices} comes too late, jax has started"
        ) from error


def _forecast(arguments: argparse.Namespace, config: Any) -> None:
    from jaxanom.jobs import dry_run
    from jaxanom.parallel import topology

    devices = topology.devices(arguments.topology) if arguments.topology else None
    limit = int(arguments.device_memory * 2**30) or None
    plan = dry_run.of_config(config, arguments.run, devices, limit)
    print(dry_run.text(plan))
    if limit or not arguments.compile_only:
        dry_run.check_fits(plan)
