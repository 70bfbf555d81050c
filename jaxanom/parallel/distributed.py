"""Joins the processes of a run; the scheduler that started them says how many."""

import os
import signal

import jax
from jax.experimental import multihost_utils

from jaxanom.errors import UserError

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT, NUMBER = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_SCHEDULED = (ADDRESS, "SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri")
_COUNTED = (COUNT, "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
_NO_CLUSTER = "coordinator_address should be defined"


def initialise() -> None:
    """Calls `jax.distributed.initialize()` where there is something to join.

    On Cloud TPU, Slurm, Kubernetes and Open MPI jax finds out by itself. Elsewhere
    three variables say it: JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without any of them the process is alone. To
    be called before any computation; a second call does nothing.

    Raises:
      UserError: a part of the three variables is missing or is no number.
    """
    if jax.distributed.is_initialized():
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(**_asked())
    except ValueError as error:
        if _NO_CLUSTER not in str(error):
            raise
    except RuntimeError:
        # jax has started: a command called as a function, in a process of its own.
        if any(name in os.environ for name in _SCHEDULED):
            raise
    else:
        # jax now listens for SIGTERM, so that processes can agree on when to stop. A
        # process alone has nobody to agree with, and its own handler acts sooner.
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, handler)


def check_alone(what: str) -> None:
    """Raises UserError where a scheduler has started several processes of a command.

    For commands whose every process would write the same files.

    Args:
      what: the command.
    """
    for name in _COUNTED:
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            raise UserError(
                f"{what} runs in one process, and {name}={count}: start it once. Of "
                "the others train, generate and evaluate share their work"
            )


def is_writer() -> bool:
    """Returns whether this process writes records and reports; one of them does."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Returns when every process is here.

    Args:
      what: name of the place, equal on all.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _asked() -> dict[str, int]:
    """Reads the count and the number of this process, if an address is given."""
    if ADDRESS not in os.environ or COUNT not in os.environ:
        return {}
    try:
        return {
            "num_processes": int(os.environ[COUNT]),
            "process_id": int(os.environ[NUMBER]),
        }
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{ADDRESS} and {COUNT} are set, {NUMBER} is "
            f"{os.environ.get(NUMBER)!r}: set each to a whole number"
        ) from error
