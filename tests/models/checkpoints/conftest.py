"""Shards as the libraries write them."""

import numpy as np
import pytest

from jaxanom import record
from jaxanom.models.checkpoints.formats import weights


@pytest.fixture
def write_shards():
    """(path, tensors, most bytes of a shard) -> the index beside them."""

    def write(path, tensors, limit):
        groups, size = [[]], 0
        for name, value in tensors.items():
            nbytes = np.asarray(value).nbytes
            if groups[-1] and size + nbytes > limit:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += nbytes
        weight_map = {}
        for number, names in enumerate(groups, start=1):
            shard = f"{path.stem}-{number:05d}-of-{len(groups):05d}.safetensors"
            part = {name: tensors[name] for name in names}
            weights.write(path.with_name(shard), part)
            weight_map |= dict.fromkeys(names, shard)
        index = path.with_name(f"{path.name}.index.json")
        record.write_json(index, {"weight_map": weight_map})
        return index

    return write
