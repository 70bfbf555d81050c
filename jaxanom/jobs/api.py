"""What a notebook needs: train, load a run, predict, generate, evaluate, report."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from jaxanom import record, trees
from jaxanom.contracts import Metric
from jaxanom.data import catalog, generated, images, pipeline, pools
from jaxanom.data.layouts import mvtec
from jaxanom.errors import UserError
from jaxanom.evaluation import calibration, protocols, runner
from jaxanom.jobs import prepare as prepared_config
from jaxanom.methods.defect_generation import drawing
from jaxanom.models.checkpoints.formats import weights
from jaxanom.parallel import distributed, placement, rules
from jaxanom.parallel import mesh as meshes
from jaxanom.report import detections, runs
from jaxanom.training import loop, selection
from jaxanom.types import Frozen, Params, Predictions

PARAMS = "params.safetensors"


class Run(NamedTuple):
    """A trained run."""

    directory: Path
    prepared: prepared_config.Prepared
    params: Params
    frozen: Frozen


def train(
    config: ml_collections.ConfigDict,
    directory: str | Path,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Trains all phases of a config; called again, it goes on where it stopped.

    A finished run is loaded, and its record stays as it is.

    Args:
      config: of a config file.
      directory: of the run. A run with another config there is refused.
      on_log: called with every row of metrics.

    Raises:
      UserError: see `prepared.prepare`; or the directory holds another run, or one of
        other images.
    """
    directory = Path(directory)
    # The record keeps "run:" as it is: a copied run looks in its own folder.
    prepared = prepared_config.prepare(prepared_config.located(config, directory))
    sources, mixtures = prepared_config.pools_of(prepared)
    chosen, selecting = prepared_config.selection_of(prepared, directory)
    # Only now: a config that was refused must not stand in the way of the next one.
    writes, goes_on = distributed.is_writer(), (directory / record.CONFIG).is_file()
    record.claim(directory, config, writes)
    if goes_on:
        pools.check_recorded(prepared.dataset, prepared.division, directory)
        if _is_finished(directory):
            return load(directory)
    begun = {
        "method": config.method,
        "versions": record.versions(),
        "machine": record.machine(),
        "split": pools.describe(prepared.dataset, prepared.division),
        **selecting,
    }
    if writes:
        record.update_json(directory / record.RECORD, begun)
    method, mesh = prepared.method, prepared.mesh
    data = {k: v for k, v in record.plain(config.data).items() if k != "num_workers"}
    identity = {"method": config.method, "data": data}
    if chosen is not None:
        identity["selection"] = record.plain(config.selection)
    initial = method.init(jax.random.key(config.train.seed))
    if config.train.get("offload_frozen", False):  # what init computed is on a device
        initial = initial[0], placement.to_host(initial[1])
    make_batches = prepared_config.batch_maker(prepared, initial[1], sources, mixtures)
    started = time.perf_counter()
    params, info = loop.run(
        method,
        config.phases,
        config.train,
        make_batches,
        mesh,
        directory,
        identity=identity,
        initial=initial,
        selection=chosen,
        on_log=on_log,
        notes={"config": record.plain(config), "record": begun},
    )
    params, facts = placement.to_host(info["ema_params"]), {}
    if method.complete is not None:
        key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
        params, facts = method.complete(params, info["frozen"], key)
        params = placement.to_host(params)
    facts |= {
        "num_params": trees.num_params(params),
        "skipped_steps": info["skipped"],
        "train_seconds": round(time.perf_counter() - started, 1),
    }
    if writes:
        weights.write(directory / PARAMS, trees.flatten(params))
        if method.export is not None:
            batch = next(make_batches(method.phases[0].name, 0))
            method.export(params, initial[1], directory / "model", batch)
        record.update_json(directory / record.RECORD, facts)
    distributed.wait_for_all(f"{directory} is written")
    return Run(directory, prepared, params, info["frozen"])


def _is_finished(directory: Path) -> bool:
    """Whether all that `train` writes is there; the record's last entry is the last."""
    found = directory / record.RECORD
    written = (directory / PARAMS).is_file() and found.is_file()
    return written and "train_seconds" in record.read_json(found)


def load(
    directory: str | Path,
    overrides: Callable[[Any], None] | None = None,
    category: str = "",
) -> Run:
    """Opens a finished run, on a mesh of all devices where its own does not fit.

    Args:
      directory: of the run.
      overrides: changes the config before the method is built, for example its
        `generate` section.
      category: a product it was not trained on and shall be asked about.

    Raises:
      UserError: no run, or an unfinished one.
    """
    directory = Path(directory)
    if not (directory / record.CONFIG).is_file():
        raise UserError(f"{directory} is no run: {record.CONFIG} is missing")
    if not (directory / PARAMS).is_file():
        raise UserError(f"{directory} is not finished; start its train command again")
    config = record.config_from_plain(record.read_json(directory / record.CONFIG))
    sizes = meshes.fitting(config.mesh, len(jax.devices()))
    if sizes != config.mesh.to_dict() and distributed.is_writer():
        print(f"{directory}: its mesh does not fit here; now {sizes}", file=sys.stderr)
    config.mesh.update(sizes)
    if overrides is not None:
        overrides(config)
    for name in config.phases:
        config.phases[name].num_steps = 0  # so that nothing is made for training
    config = prepared_config.located(config, directory)
    prepared = prepared_config.prepare(config, category)
    params = trees.unflatten(weights.read(directory / PARAMS))
    fresh, frozen = prepared.method.init(jax.random.key(config.train.seed))
    trees.check_same_shapes(params, fresh, str(directory / PARAMS))
    params, frozen = (
        placement.place(tree, rules.shardings(tree, prepared.mesh))
        for tree in (params, frozen)
    )
    return Run(directory, prepared, params, frozen)


def check_images(run: Run) -> None:
    """Checks that a run is tested on the images that it was begun with, or on others.

    Raises:
      UserError: its own folder holds others now, see `pools.check_recorded`.
    """
    stored = run.directory / record.CONFIG
    if not stored.is_file():
        return
    own = record.config_from_plain(record.read_json(stored))
    own, asked = prepared_config.located(own, run.directory), run.prepared.config
    keys = prepared_config.DIVIDED_BY
    if all(own.data.get(key) == asked.data.get(key) for key in keys):
        dataset, division = run.prepared.dataset, run.prepared.division
        pools.check_recorded(dataset, division, run.directory)


def predict(
    run: Run, pictures: Sequence[np.ndarray], category: str = ""
) -> Predictions:
    """Scores images of any size, in batches of `config.data.batch_size`.

    Args:
      run: of a method that detects.
      pictures: uint8 [H, W, 3] each; read one by one, so a lazy sequence will do.
      category: what they show; needed where the run knows several.

    Returns:
      Maps at the run's image size [N, h, w] and scores [N], numpy float32.

    Raises:
      UserError: the method only generates, there is no picture or one of another type
        or shape, or the category is not known.
    """
    _check_detects(run)
    count = len(pictures)
    if not count:
        raise UserError("no picture to score")
    known = run.prepared.dataset.categories
    if (category or len(known) > 1) and category not in known:
        raise UserError(
            f"category {category!r}: this run knows {', '.join(known)}; name one of "
            "them, or a new one when the run is loaded (--category=NAME)"
        )
    number = known.index(category) if category else 0
    size = min(run.prepared.config.data.batch_size, count)
    apply = jax.jit(run.prepared.method.predict)
    parts = []
    for start in range(0, count, size):
        # The last batch is filled up with its own rows: one shape, one program.
        rows = [min(start + place, count - 1) for place in range(size)]
        chosen = [pictures[row] for row in rows]
        batch = {
            "image": images.to_batch(chosen, run.prepared.dataset.image_size),
            "category_id": np.full(size, number, np.int32),
            "valid": np.ones(size, bool),
        }
        found = apply(run.params, run.frozen, batch, jax.random.key(0))
        kept = min(size, count - start)
        parts.append(jax.tree.map(lambda array, n=kept: np.asarray(array)[:n], found))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def detect(
    run: Run,
    paths: Sequence[str | Path],
    directory: str | Path,
    normal: str | Path | None = None,
    false_alarm_rate: float = 0.05,
    category: str = "",
) -> list[dict[str, Any]]:
    """Scores image files and writes heat maps, see `report.detections`.

    The maps of all images are held in memory, 1 MB for one of 512 px.

    Args:
      run: of a method that detects.
      paths: image files, or folders whose images are meant.
      directory: to write to.
      normal: folder of normal images, not those trained on, that set the threshold;
        see `evaluation.calibration`. Without it no image is called anomalous.
      false_alarm_rate: wanted share of normal images called anomalous.
      category: see `predict`.

    Raises:
      UserError: a path that is no image, a normal image that was trained on, or the
        method does not detect.
    """
    files = mvtec.image_files(paths)
    threshold = None
    if normal is not None:
        others = mvtec.image_files([normal])
        pools.check_unseen(run.prepared.dataset, run.prepared.division, others)
        calm = predict(run, images.Lazy(others), category)
        threshold = calibration.from_normals(calm.image_score, false_alarm_rate)
    found = predict(run, images.Lazy(files), category)
    return detections.write(Path(directory), files, found, threshold)


def evaluate(
    run: Run, num_examples: int = 12, extra: Mapping[str, Metric] | None = None
) -> dict[str, Any]:
    """Scores a detector on its test images; writes `evaluation.json` and examples.

    Args:
      run: of a method that detects.
      num_examples: images whose maps are written.
      extra: further metrics by name, beside those of the protocol.

    Returns:
      {"mean", "per_category", "num_images", "curves"}.

    Raises:
      UserError: the method only generates, there are no test images, or others than
        when the run was begun.
    """
    _check_detects(run)
    check_images(run)
    prepared = run.prepared
    dataset, division = prepared.dataset, prepared.division
    key = jax.random.key(prepared.config.seed)
    apply = jax.jit(prepared.method.predict)
    rescale = prepared.method.rescale
    protocol = protocols.image_detection(rescale)
    without_masks = sorted(catalog.unmasked(dataset, division.test))
    if not without_masks:
        protocol = protocols.few_shot_supervised(rescale=rescale)
        protocol = protocols.with_spread(protocol)
    protocol, pooled = protocols.with_classes(protocol, prepared.method.target)
    source = catalog.source(dataset, division.test)
    size = prepared.config.data.batch_size
    rows = placement.process_rows(size, prepared.mesh)
    batches = (
        placement.place_batch(batch, prepared.mesh)
        for batch in pipeline.finite_batches(source, size, rows)
    )
    chosen = pools.spread(dataset, division.test, num_examples)
    results = runner.evaluate(
        lambda batch: apply(run.params, run.frozen, batch, key),
        batches,
        {**protocol.metrics, **(extra or {})},
        categories=dataset.categories,
        curves=protocol.curves,
        keep_indices=chosen,
        gather=placement.to_host if jax.process_count() > 1 else None,
        pooled=pooled,
    )
    examples = results.pop("examples")
    if rescale is not None:  # scores depend on the other test images: say so
        results["transductive"] = True
    asked = selection.read(prepared.config.get("selection"))
    if without_masks:  # pixels were not measured: say why
        results["without_masks"] = without_masks
    if asked.rule != "last":  # parameters were chosen by labels of test images
        results["selected_on"] = list(asked.categories)
    if distributed.is_writer():
        runs.write_evaluation(run.directory, results, examples)
    distributed.wait_for_all(f"{run.directory} is evaluated")
    return results


def _check_detects(run: Run) -> None:
    if run.prepared.method.predict is None:
        raise UserError(
            f"method {run.prepared.config.method!r} of {run.directory} does not detect;"
            " train a detector on its images with config.method='detector'"
        )


def generate(
    run: Run,
    directory: str | Path,
    num_images: int | None = None,
    overwrite: bool = False,
) -> generated.Written:
    """Draws new defects on normal training images and writes them as a set.

    Defect types take turns. Image k is a function of (the run, `config.generate.seed`,
    k) alone: more images leave the first ones as they are.

    Args:
      run: of a method that generates.
      directory: of the set; see `data.generated`.
      num_images: pairs asked for; None: `config.generate.num_images`.
      overwrite: replace an earlier set.

    Raises:
      UserError: the method does not generate, or the directory is in use.
    """
    if run.prepared.method.generate is None:
        raise UserError(
            f"method {run.prepared.config.method!r} of {run.directory} does not "
            "generate; train one that does, such as 'defect_generation'"
        )
    settings = run.prepared.config.generate
    count = settings.num_images if num_images is None else num_images
    drawing.check(settings, count, run.prepared.mesh)
    normals = pools.normal_images(run.prepared.dataset, run.prepared.division)
    rows = (row for row, _ in generated_rows(run, count))
    if distributed.is_writer():
        written = generated.write(directory, rows, normals, overwrite)
    else:
        written = generated.leave_to_another(directory, rows, overwrite)
    distributed.wait_for_all(f"{directory} is written")
    return written


def generated_rows(
    run: Run, num_images: int
) -> Iterator[tuple[generated.GeneratedRow, drawing.Pictures]]:
    """Yields generated pairs with what the report shows of how they came about.

    Yields:
      See `drawing.rows`.
    """
    prepared = run.prepared
    settings = prepared.config.generate
    return drawing.rows(
        jax.jit(prepared.method.generate),
        run.params,
        run.frozen,
        pools.training_part(prepared.dataset, prepared.division),
        num_images,
        prompt=prepared.config.defect_generation.defect_prompt,
        seed=settings.seed,
        batch_size=settings.batch_size,
        mesh=prepared.mesh,
        per_image=settings.get("per_image", 1),
        least_kept=settings.get("least_kept", 0.0),
        refine=settings.get("refine", True),
        paste=settings.get("paste", False),
    )
