"""Saves a tree of arrays with a JSON note; restores it onto any mesh.

One small wrapper around orbax's `CheckpointManager`. Leaves are stored flat, by path,
so that what is on disk depends on no container class; the note lists their shapes, so
that a checkpoint of another model is told apart before anything is read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxanom.parallel import rules

LEAVES = "leaves"
_SHOWN = 5


class Checkpoints:
    """The checkpoints of one run, numbered by step.

    A save that was killed half-way leaves no checkpoint: orbax writes under another
    name and renames at the end. A numbered folder that lacks its parts (a broken copy)
    is moved aside, so that it neither restores nor blocks a later save.
    """

    def __init__(self, directory: Path, keep: int = 2):
        """Opens (and creates) a folder.

        Args:
          directory: for checkpoints only.
          keep: newest checkpoints that are kept; 0 keeps all.
        """
        self.directory = Path(directory).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            _move_broken_aside(self.directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep or None, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            self.directory, options=options, item_names=("state", "meta")
        )

    def latest_step(self) -> int | None:
        """Returns the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def path(self, step: int) -> Path:
        """Returns the folder of a checkpoint."""
        return self.directory / str(step)

    def save(
        self, step: int, tree: Any, meta: Mapping[str, Any], wait: bool = False
    ) -> None:
        """Copies the tree to the host and writes it in the background.

        Args:
          step: larger than every saved one.
          tree: arrays; typed keys are allowed anywhere.
          meta: JSON values.
          wait: return only when the files are complete.

        Raises:
          ValueError: `step` is not newer than the newest checkpoint.
        """
        newest = self.latest_step()
        if newest is not None and step <= newest:
            raise ValueError(
                f"step {step} is not newer than checkpoint {newest} in {self.directory}"
            )
        flat = {path: _storable(leaf) for path, leaf in _flatten(tree).items()}
        note = {**meta, LEAVES: _describe(flat)}
        # An empty array cannot be stored and need not be: its shape says it all.
        flat = {path: leaf for path, leaf in flat.items() if leaf.size}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(flat), meta=ocp.args.JsonSave(note)
        )
        if not self._manager.save(step, args=args, force=True):
            raise RuntimeError(f"checkpoint {step} in {self.directory} was not written")
        if wait:
            self.wait()

    def read_meta(self, step: int) -> dict[str, Any]:
        """Returns the JSON note of a checkpoint."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def restore(self, step: int, target: Any) -> Any:
        """Reads a checkpoint onto the mesh that `target` names.

        Args:
          step: of the checkpoint.
          target: tree of ShapeDtypeStructs with shardings, as wanted now; the mesh may
            differ from the one that saved.

        Returns:
          Arrays in the containers of `target`.

        Raises:
          ValueError: paths or shapes differ; says which, wanted and found.
        """
        wanted = _flatten(target)
        stored = {path: _stored_form(leaf) for path, leaf in wanted.items()}
        self._check(step, _describe(stored))
        full = {path: leaf for path, leaf in stored.items() if leaf.size}
        args = ocp.args.Composite(state=ocp.args.StandardRestore(full))
        found = self._manager.restore(step, args=args)["state"]
        leaves = [_original(found.get(path), leaf) for path, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(target), leaves)

    def wait(self) -> None:
        """Waits until background writes are complete."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for writes and lets go of the folder."""
        self._manager.close()

    def _check(self, step: int, wanted: dict[str, Any]) -> None:
        """Compares the stored paths and shapes with the wanted ones."""
        found = self.read_meta(step)[LEAVES]
        wrong = [
            f"{path}: wanted {wanted.get(path, 'nothing')}, "
            f"found {found.get(path, 'nothing')}"
            for path in sorted(wanted.keys() | found.keys())
            if wanted.get(path) != found.get(path)
        ]
        if wrong:
            more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise ValueError(
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
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), leaf)
    return found[0]


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
    parts = ("_CHECKPOINT_METADATA", "state", "meta")
    for folder in directory.iterdir():
        complete = all((folder / part).exists() for part in parts)
        if folder.name.isdigit() and folder.is_dir() and not complete:
            attempt = 0
            while (aside := directory / f"broken-{folder.name}-{attempt}").exists():
                attempt += 1
            folder.rename(aside)
