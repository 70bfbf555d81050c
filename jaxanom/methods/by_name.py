"""Methods by name; only the wanted one is imported."""

import difflib
import importlib
from typing import Any

from jaxanom.contracts import Method
from jaxanom.data.catalog import Dataset
from jaxanom.errors import UserError

METHODS = {
    "adp": "jaxanom.methods.adp",
    "app": "jaxanom.methods.app",
    "bayes_pfl": "jaxanom.methods.bayes_pfl",
    "defect_generation": "jaxanom.methods.defect_generation",
    "detector": "jaxanom.methods.detector",
    "memory": "jaxanom.methods.memory",
    "pretraining": "jaxanom.methods.pretraining",
}


POSTERIORS = ("app",)
"""Methods with a `Method.posterior`, which a sweep takes."""


def make(config: Any, dataset: Dataset) -> Method:
    """Builds `config.method`.

    Raises:
      UserError: there is no such method; names the nearest.
    """
    name = config.method
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)[0]
        raise UserError(f"config.method={name!r}; did you mean {near!r}?")
    return importlib.import_module(METHODS[name]).make(config, dataset)
