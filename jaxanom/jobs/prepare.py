"""A config brought to life: its data, method, mesh and batches; nothing is trained."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
from jax.sharding import Mesh

from jaxanom.contracts import Method
from jaxanom.data import (
    augmentation,
    catalog,
    feature_cache,
    pipeline,
    pools,
    resident,
    transforms,
)
from jaxanom.evaluation import validation
from jaxanom.methods import by_name
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement
from jaxanom.training import plan, selection
from jaxanom.types import Batch, Frozen

DIVIDED_BY = (
    *("name", "directory", "categories", "seed", "class_subset"),
    *("num_train", "num_test_good", "num_per_defect"),
    *("defect_rule", "shots", "split_seed", "held_out"),
)
"""Keys of `config.data` that decide which images are trained on and tested on."""

_AUGMENTED = 17  # the random stream of augmented views, beside those of `data`


MakeFn = Callable[[Any, catalog.Dataset], Method]
"""(config, training part of the data) -> the method, as `by_name.make`."""


class Prepared(NamedTuple):
    """A config brought to life: data, method, mesh."""

    config: ml_collections.ConfigDict
    dataset: catalog.Dataset
    division: pools.Division
    method: Method
    mesh: Mesh


def open_data(config: Any) -> tuple[catalog.Dataset, pools.Division]:
    """Opens `config.data` and divides it into training and test images."""
    data = config.data
    dataset = catalog.open_dataset(
        data.name,
        data.directory or None,
        tuple(data.categories),
        data.tiles * data.image_size,
        data.seed,
        data.num_train,
        data.num_test_good,
        data.num_per_defect,
        data.class_subset,
        data.aspect,
    )
    division = pools.divide(
        dataset,
        data.defect_rule,
        data.shots,
        data.split_seed,
        0 if data.name == "foundry" else data.num_train,
        tuple(data.held_out),
    )
    return dataset, division


def prepare(
    config: ml_collections.ConfigDict,
    category: str = "",
    devices: Sequence[jax.Device] | None = None,
    make: MakeFn = by_name.make,
) -> Prepared:
    """Checks everything that can be checked before a compile.

    Args:
      config: A recipe's config.
      category: one to know besides those of the data, for methods that detect in
        products they never saw.
      devices: The devices of the mesh; None: all that are attached.
      make: Makes the method of a config and a dataset.

    Raises:
      UserError: what is wrong, where, and which key to change.
    """
    shape = config.mesh
    sizes = {axis: shape[axis] for axis in meshes.AXES}
    mesh = meshes.make_mesh(**sizes, devices=devices)
    data = config.data
    dataset, division = open_data(config)
    if category and category not in dataset.categories:
        dataset = dataset._replace(categories=(*dataset.categories, category))
    method = make(config, pools.training_part(dataset, division))
    transforms.check_views(
        method.encode is not None,
        data.num_views,
        tuple(data.flips),
        data.shift,
        data.feature_cache,
        bool(data.augmentation or data.mosaic),
    )
    _transform(config, dataset, division)
    resident.check(data.feature_memory)
    plan.read_train(config.train)
    for stage in plan.stages(method, config.phases):
        accumulate = stage.config.accumulate
        placement.check_batch_size(data.batch_size, mesh, accumulate)
    return Prepared(config, dataset, division, _bound(method, mesh), mesh)


def _bound(method: Method, mesh: Mesh) -> Method:
    """Returns the method with its programs bound to the mesh.

    Once: jax knows a function that it has compiled by its identity. `encode` runs over
    the data in each process, before there is anything to share.
    """

    def bound(function, mesh=mesh):
        return function and meshes.bound(function, mesh)

    measured = method.measured and {
        phase: bound(function) for phase, function in method.measured.items()
    }
    return method._replace(
        encode=bound(method.encode, meshes.of_process(mesh)),
        predict=bound(method.predict),
        generate=bound(method.generate),
        measured=measured,
    )


def located(
    config: ml_collections.ConfigDict, directory: str | Path
) -> ml_collections.ConfigDict:
    """Returns the config with every key of `config.kept` set to its folder of the run.

    What a run keeps of its own, such as a user's few images, is found wherever the run
    is copied to.

    Args:
      config: A run's config; `kept` holds pairs such as ("data.directory", "shots") or
        ("adp.feature_tower", "mobilenet_v2:features").
      directory: The run.
    """
    if not config.kept:  # the config itself, so that a caller's changes are seen
        return config
    changed = ml_collections.ConfigDict(config.to_dict())
    for key, folder in config.kept:
        section, _, name = key.rpartition(".")
        kind, colon, folder = folder.rpartition(":")
        changed[section][name] = f"{kind}{colon}{Path(directory) / folder}"
    return changed


def pools_of(
    prepared: Prepared,
) -> tuple[dict[str, catalog.Source], dict[str, dict[str, float]]]:
    """Returns the pools of training images, and each phase's weights of them.

    Raises:
      UserError: a weight without images, a generated set that does not fit, or defects
        without masks for a method that learns from pixels.
    """
    config, dataset, division = prepared.config, prepared.dataset, prepared.division
    sources = pools.sources(dataset, division, config.data.generated)
    mixtures = {phase: dict(mix) for phase, mix in config.mixture.items()}
    pools.check_mixtures(sources, mixtures, [p.name for p in prepared.method.phases])
    if "defect" in used_pools(mixtures) and prepared.method.learns_pixels:
        pools.check_masks(dataset, division.defect)
    return sources, mixtures


def selection_of(
    prepared: Prepared, directory: Path
) -> tuple[selection.Selection | None, dict[str, Any]]:
    """Returns what chooses parameters by labelled test images, if that is asked for.

    With it comes what the run record has to say of that: which categories they are.

    Args:
      prepared: a prepared config.
      directory: The run.
    """
    config, method = prepared.config, prepared.method
    settings = selection.read(config.get("selection"))
    if settings.rule == "last":
        return None, {}
    numbers = validation.labelled(
        prepared.dataset, prepared.division.test, settings.categories
    )
    facts = {
        "rule": settings.rule,
        "labelled_test_categories": list(settings.categories),
        "num_images": len(numbers),
    }
    measure = validation.make_measure(
        method.measured or {phase.name: method.predict for phase in method.phases},
        prepared.dataset,
        numbers,
        settings.metrics,
        config.data.batch_size,
        prepared.mesh,
        config.seed,
    )
    every, patience = settings.every, settings.patience
    chooser = selection.by_measure(directory, measure, every, patience)
    return chooser, {"selection": facts}


def batch_maker(
    prepared: Prepared,
    frozen: Frozen,
    sources: Mapping[str, catalog.Source],
    mixtures: Mapping[str, Mapping[str, float]],
) -> Callable[[str, int], Iterator[Mapping[str, Any]]]:
    """Returns the trainer's batch maker; frozen towers run over the data once.

    Args:
      prepared: a prepared config.
      frozen: Its method's frozen weights.
      sources, mixtures: What `pools_of` returned.
    """
    config, data = prepared.config, prepared.config.data
    transform = _transform(config, prepared.dataset, prepared.division)
    if prepared.method.encode is not None:
        used, encode = used_pools(mixtures), jax.jit(prepared.method.encode)
        sources = {
            name: encoded(config, encode, frozen, source, transform)
            for name, source in sources.items()
            if name in used and len(source)
        }
        transform = None  # it is in the views
        rows = {name: source.arrays for name, source in sources.items()}
        place = data.feature_memory
        if resident.is_wanted(place, rows, prepared.mesh):
            return resident.batch_maker(
                rows, mixtures, data.batch_size, config.seed, prepared.mesh
            )
    return pools.batch_maker(
        sources,
        mixtures,
        data.batch_size,
        config.seed,
        transform,
        placement.process_rows(data.batch_size, prepared.mesh),
        data.num_workers,
    )


def _transform(
    config: Any, dataset: catalog.Dataset, division: pools.Division
) -> pipeline.Transform | None:
    """Returns how training images are augmented, by the keys of `config.data`."""
    data = config.data
    return augmentation.make(dataset, division.defect, data.augmentation, data.mosaic)


def used_pools(mixtures: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Returns the names of pools that any phase draws from."""
    return {name for mix in mixtures.values() for name in mix if mix[name]}


def encoded(
    config: ml_collections.ConfigDict,
    encode: Callable[[Frozen, Batch], Batch],
    frozen: Frozen,
    source: catalog.Source,
    transform: pipeline.Transform | None = None,
) -> pipeline.Encoded:
    """Runs a frozen tower once over all views of a source.

    Args:
      config: its `data` and `seed` are read.
      encode: `Method.encode`, jitted.
      frozen: The method's frozen weights.
      source: at least one image.
      transform: changes every view but the first, after flips and shifts.
    """
    data = config.data

    def view(example, number):
        changed = transforms.views(
            example, number, config.seed, tuple(data.flips), data.shift
        )
        if number == 0 or transform is None:
            return changed
        place = int(example["index"]), number
        return transform(changed, pipeline.generator(config.seed, _AUGMENTED, *place))

    def encode_batch(batch):
        return encode(frozen, batch)

    directory = data.feature_cache
    if directory:
        first = next(pipeline.finite_batches(source, data.batch_size))
        fields = jax.eval_shape(encode_batch, first)
        encode_batch = feature_cache.remembered(
            encode_batch,
            directory,
            feature_cache.identity(encode, frozen, first),
            [name for name in fields if name not in first],
            [name for name in fields if name in first],
        )
    return pipeline.encoded(source, encode_batch, data.batch_size, data.num_views, view)


def without(
    config: ml_collections.ConfigDict, left_out: str
) -> ml_collections.ConfigDict:
    """Returns a copy of the config without one section."""
    return ml_collections.ConfigDict(
        {key: value for key, value in config.to_dict().items() if key != left_out}
    )
