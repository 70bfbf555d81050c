"""Our parameters under the names and in the shapes of the released checkpoints."""

import re

import numpy as np

from jaxanom import trees
from jaxanom.methods.bayes_pfl import released

LAYERS = "attention/projections"
ADDED = {"u": (0, 3), "w": (0, 2), "b": (0, 2, 3), "state": (0,)}
"""Axes of length one that the released flows have."""


def to_released(params):
    """Returns {released name: array}; the inverse of `released.from_released`."""
    tensors = {}
    for path, leaf in trees.flatten(params).items():
        names = released.released_names(path, leaf.shape)
        parts = list(leaf) if path == LAYERS else [leaf]
        for name, part in zip(names, parts, strict=True):
            tensors[name] = _outward(path, np.asarray(part))
    return tensors


def _outward(path, array):
    if path.endswith("/kernel") or path == LAYERS:
        array = np.ascontiguousarray(array.T)
        return array[:, :, None] if path == "attention/query/kernel" else array
    if re.fullmatch(r"(normal|abnormal)_flow/.*", path):
        return np.expand_dims(array, ADDED[path.rpartition("/")[2]])
    return array
