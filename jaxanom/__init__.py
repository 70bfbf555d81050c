"""Visual anomaly detection in JAX when anomalies are scarce.

    run = jaxanom.fewshot("photos/good", category="bottle", directory="runs/bottle")
    predictions = run.predict([image])

The names in `__all__` are public, no others; each is imported on first use.
"""

import importlib

__version__ = "0.1.0"
_OF_RUNS = ("Run", "detect", "evaluate", "fewshot", "generate", "load", "predict")
_HOMES = {
    **dict.fromkeys((*_OF_RUNS, "train"), "jaxanom.jobs.run"),
    "UserError": "jaxanom.errors",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxanom' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
