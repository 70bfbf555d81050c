"""Saves a tree of arrays with a JSON note; restores it onto any mesh.

One small wrapper around orbax's `CheckpointManager`. Leaves are stored flat, by path,
small ones joined (`packing`), so that what is on disk depends on no container class;
the note lists their shapes, so that a checkpoint of another model is told apart before
anything is read.
"""

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from jaxanom import trees
from jaxanom.errors import UserError
from jaxanom.parallel import rules
from jaxanom.training import packing

LEAVES, JOINED, VALUE = "leaves", "joined", "value"
_PARTS = ("_CHECKPOINT_METADATA", "state", "meta")
_SHOWN = 5


class Checkpoints:
    """The checkpoints of one run, numbered by step.

    A save that was killed half-way leaves no checkpoint: orbax writes under another
    name and renames at the end. A numbered folder that lacks its parts (a broken copy)
    is moved aside, so that it neither restores nor blocks a later save. A save that
    fails (a full disk, a deleted folder) is a warning: training goes on from memory,
    and the next save starts anew.
    """

    def __init__(self, directory: Path, keep: int = 2, keep_best: int = 0):
        """Opens (and creates) a folder.

        Args:
          directory: for checkpoints only.
          keep: newest checkpoints that are kept; 0 keeps all.
          keep_best: checkpoints of highest `value` that are kept beside those.
        """
        self.directory = Path(directory).resolve()
        self._keep, self._keep_best = keep, keep_best
        self._pending: int | None = None
        if jax.process_index() == 0:
            self.directory.mkdir(parents=True, exist_ok=True)
            _move_broken_aside(self.directory)
        if jax.process_count() > 1:  # nobody lists the folder before it is in order
            multihost_utils.sync_global_devices(f"checkpoints {self.directory}")
        self._manager = self._open()

    def latest_step(self) -> int | None:
        """Returns the newest checkpoint whose files are complete, or None."""
        if self._pending is not None and not self._manager.is_saving_in_progress():
            self.wait()
        steps = [step for step in self._manager.all_steps() if step != self._pending]
        return max(steps, default=None)

    def path(self, step: int) -> Path:
        """Returns the folder of a checkpoint."""
        return self.directory / str(step)

    def save(
        self,
        step: int,
        tree: Any,
        meta: Mapping[str, Any],
        wait: bool = False,
        value: float | None = None,
    ) -> bool:
        """Copies the tree to the host and writes it in the background.

        Args:
          step: larger than every saved one.
          tree: arrays; typed keys are allowed anywhere.
          meta: JSON values.
          wait: return only when the files are complete.
          value: how good it is, for `keep_best`; higher is better.

        Returns:
          False if nothing was saved: a warning has said why. Without `wait`, True says
          only that writing has begun.

        Raises:
          UserError: `step` is not newer than the newest checkpoint.
        """
        self.wait()  # one save at a time; the last one's failure is told here
        newest = self.latest_step()
        if newest is not None and step <= newest:
            raise UserError(
                f"step {step} is not newer than checkpoint {newest} in {self.directory}"
            )
        flat = {path: _storable(leaf) for path, leaf in _flatten(tree).items()}
        note = {**meta, LEAVES: _describe(flat)}
        # An empty array cannot be stored and need not be: its shape says it all.
        flat = {path: leaf for path, leaf in flat.items() if leaf.size}
        flat, note[JOINED] = packing.join(flat)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(note)
        )
        metrics = {} if value is None else {"metrics": {VALUE: float(value)}}
        self._pending = step
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not self._manager.save(step, args=args, force=True, **metrics):
                raise OSError("orbax skipped it")
        except Exception as error:  # whatever the storage at hand raises
            self._start_anew(error)
            return False
        return self.wait() if wait else True

    def read_meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON note of a checkpoint."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def restore(self, step: int, target: Any) -> Any:
        """Reads a checkpoint onto the mesh that `target` names.

        Args:
          step: Which checkpoint.
          target: tree of ShapeDtypeStructs with shardings, as wanted now; the mesh may
            differ from the one that saved.

        Returns:
          Arrays in the containers of `target`.

        Raises:
          UserError: paths or shapes differ; says which, wanted and found.
        """
        leaves_wanted = _flatten(target)
        stored = {path: _stored_form(leaf) for path, leaf in leaves_wanted.items()}
        note = self.read_meta(step)
        self._check(step, note[LEAVES], _describe(stored))
        full = {path: leaf for path, leaf in stored.items() if leaf.size}
        joined = note[JOINED]
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(packing.wanted(full, joined))
        )
        stored_leaves = self._manager.restore(step, args=args)["state"]
        stored_leaves = packing.part(stored_leaves, full, joined)
        leaves = [
            _original(stored_leaves.get(path), leaf)
            for path, leaf in leaves_wanted.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(target), leaves)

    def wait(self) -> bool:
        """Waits for a background save.

        Returns:
          Whether its files are complete; if not, a warning has said why.
        """
        if self._pending is None:
            return True
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if not (self.path(self._pending) / _PARTS[0]).exists():
                raise FileNotFoundError(f"{self.path(self._pending)} is not there")
        except Exception as error:  # as in `save`
            self._start_anew(error)
            return False
        self._pending = None
        return True

    def close(self) -> None:
        """Waits for writes and lets go of the folder."""
        self.wait()
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        options = {"max_to_keep": self._keep or None}
        if self._keep and self._keep_best:
            newest = policies.LatestN(self._keep)
            best = policies.BestN(
                get_metric_fn=lambda metrics: metrics[VALUE],
                n=self._keep_best,
                keep_checkpoints_without_metrics=False,
            )
            policy = policies.AnyPreservationPolicy([newest, best])
            # Without a `best_fn` orbax does not store the values to choose by.
            options = {
                "preservation_policy": policy,
                "best_fn": lambda metrics: metrics[VALUE],
            }
        options = ocp.CheckpointManagerOptions(**options, cleanup_tmp_directories=True)
        return ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "meta")
        )

    def _start_anew(self, error: Exception) -> None:
        """Tells that the pending save failed; forgets it and what orbax knew of it."""
        failed, self._pending = self._pending, None
        with contextlib.suppress(Exception):  # the same error, told once is enough
            self._manager.close()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = self._open()
        warnings.warn(
            f"checkpoint {failed} was not written to {self.directory} ({error}); the "
            f"newest complete one is {self.latest_step()}. Training goes on, the next "
            "save is tried as usual: see to the room and the rights there",
            stacklevel=3,
        )

    def _check(self, step: int, stored: dict[str, str], target: dict[str, str]) -> None:
        """Compares the stored paths and shapes with the wanted ones."""
        wrong = trees.differences(stored, target)
        if wrong:
            more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise UserError(
                f"{self.path(step)} holds the checkpoint of another model; use another "
                "directory or the config it was trained with:\n  "
                + "\n  ".join(wrong[:_SHOWN])
                + more
            )


def abstract(tree: Any, shardings: Any) -> Any:
    """Returns the restore target: shapes and types of `tree`, placed by `shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=sharding
        ),
        tree,
        shardings,
    )


def _flatten(tree: Any) -> dict[str, Any]:
    return {
        rules.path_of(keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _describe(flat: Mapping[str, Any]) -> dict[str, str]:
    """Returns {path: "float32[2, 3]"}."""
    return {
        path: f"{jnp.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in flat.items()
    }


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_impl(leaf: jax.ShapeDtypeStruct) -> Any:
    """Returns the generator of a typed key; jax tells it of arrays and tracers only."""
    implementations = []
    jax.eval_shape(lambda key: implementations.append(jax.random.key_impl(key)), leaf)
    return implementations[0]


def _storable(leaf: Any) -> jax.Array:
    """Returns the words of a typed key, any other leaf as it is."""
    leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _stored_form(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns what `_storable` makes of such a leaf."""
    if not _is_key(leaf):
        return leaf
    words = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=leaf.sharding)


def _original(stored: jax.Array | None, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Inverse of `_storable`; None stands for an empty array."""
    if stored is None:
        return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)
    if _is_key(leaf):
        key = jax.random.wrap_key_data(stored, impl=_key_impl(leaf))
        return jax.device_put(key, leaf.sharding)
    return stored


def _move_broken_aside(directory: Path) -> None:
    for folder in directory.iterdir():
        complete = all((folder / part).exists() for part in _PARTS)
        if folder.name.isdigit() and folder.is_dir() and not complete:
            attempt = 0
            while (aside := directory / f"broken-{folder.name}-{attempt}").exists():
                attempt += 1
            folder.rename(aside)
