"""What a notebook needs: train, load a run, predict, generate, evaluate, report."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from jaxanom import record, trees
from jaxanom.contracts import Method
from jaxanom.data import catalog, generated, images, pipeline, pools, transforms
from jaxanom.evaluation import protocols, runner
from jaxanom.methods import by_name
from jaxanom.methods.defect_generation import predict as defect_predict
from jaxanom.models import weights
from jaxanom.parallel import mesh as meshes
from jaxanom.parallel import placement, rules
from jaxanom.report import page, runs, tables
from jaxanom.training import loop
from jaxanom.types import Batch, Frozen, Params, Predictions

PARAMS = "params.safetensors"


class Prepared(NamedTuple):
    """A config brought to life: data, method, mesh."""

    config: ml_collections.ConfigDict
    dataset: catalog.Dataset
    division: pools.Division
    method: Method
    mesh: Mesh


class Run(NamedTuple):
    """A trained run."""

    directory: Path
    prepared: Prepared
    params: Params
    frozen: Frozen


def open_data(config: Any) -> tuple[catalog.Dataset, pools.Division]:
    """Opens `config.data` and divides it into training and test images."""
    data = config.data
    dataset = catalog.open_dataset(
        data.name,
        data.directory or None,
        tuple(data.categories),
        data.image_size,
        data.seed,
        data.num_train,
        data.num_test_good,
        data.num_per_defect,
    )
    division = pools.divide(
        dataset,
        data.defect_rule,
        data.shots,
        data.split_seed,
        data.num_train if data.name == "folder" else 0,
    )
    return dataset, division


def prepare(config: ml_collections.ConfigDict) -> Prepared:
    """Checks everything that can be checked before a compile.

    Raises:
      ValueError: what is wrong, where, and which key to change.
    """
    shape = config.mesh
    mesh = meshes.make_mesh(shape.data, shape.fsdp, shape.model, shape.particle)
    placement.check_batch_size(config.data.batch_size, mesh)
    dataset, division = open_data(config)
    method = by_name.make(config, pools.training_part(dataset, division))
    return Prepared(config, dataset, division, method, mesh)


def train(
    config: ml_collections.ConfigDict,
    directory: str | Path,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Trains all phases of a config; called again, it goes on where it stopped.

    Args:
      config: of a config file.
      directory: of the run. A run with another config there is refused.
      on_log: called with every row of metrics.

    Raises:
      ValueError: see `prepare`; or the directory holds another run.
    """
    directory = Path(directory)
    record.claim(directory, config)
    prepared = prepare(config)
    record.update_json(
        directory / record.RECORD,
        {
            "method": config.method,
            "versions": record.versions(),
            "machine": record.machine(),
            "split": pools.describe(prepared.dataset, prepared.division),
        },
    )
    method, mesh = prepared.method, prepared.mesh
    initial = method.init(jax.random.key(config.train.seed))
    make_batches = _make_batches(prepared, initial[1])
    started = time.perf_counter()
    params, info = loop.run(
        method,
        config.phases,
        config.train,
        make_batches,
        mesh,
        directory,
        identity={"method": config.method, "data": record.plain(config.data)},
        initial=initial,
        on_log=on_log,
    )
    params = placement.to_host(info["ema_params"])
    weights.write(directory / PARAMS, trees.flatten(params))
    if method.export is not None:
        batch = next(make_batches(method.phases[0].name, 0))
        method.export(params, initial[1], directory / "model", batch)
    record.update_json(
        directory / record.RECORD,
        {
            "num_params": trees.num_params(params),
            "skipped_steps": info["skipped"],
            "train_seconds": round(time.perf_counter() - started, 1),
        },
    )
    return Run(directory, prepared, params, info["frozen"])


def _make_batches(prepared: Prepared, frozen: Frozen):
    """Returns the batch maker of the loop; frozen towers ran over the data once."""
    config, data = prepared.config, prepared.config.data
    sources = pools.sources(prepared.dataset, prepared.division, data.generated)
    mixtures = {phase: dict(weights) for phase, weights in config.mixture.items()}
    if prepared.method.encode is not None:
        used = {name for mix in mixtures.values() for name in mix if mix[name]}
        sources = {
            name: _encoded(prepared, frozen, source)
            for name, source in sources.items()
            if name in used and len(source)
        }
    return pools.batch_maker(sources, mixtures, data.batch_size, config.seed)


def _encoded(prepared: Prepared, frozen: Frozen, source: catalog.Source):
    data = prepared.config.data

    def view(example, number):
        return transforms.views(
            example, number, prepared.config.seed, tuple(data.flips), data.shift
        )

    encode = jax.jit(prepared.method.encode)
    return pipeline.encoded(
        source,
        lambda batch: encode(frozen, batch),
        data.batch_size,
        data.num_views,
        view,
    )


def load(directory: str | Path, overrides: Callable[[Any], None] | None = None) -> Run:
    """Opens a finished run.

    Args:
      directory: of the run.
      overrides: changes the config before the method is built, for example its
        `generate` section.

    Raises:
      ValueError: no run, or an unfinished one.
    """
    directory = Path(directory)
    if not (directory / record.CONFIG).is_file():
        raise ValueError(f"{directory} is no run: {record.CONFIG} is missing")
    if not (directory / PARAMS).is_file():
        raise ValueError(f"{directory} is not finished; start its train command again")
    config = record.config_from_plain(record.read_json(directory / record.CONFIG))
    if overrides is not None:
        overrides(config)
    prepared = prepare(config)
    params = trees.unflatten(weights.read(directory / PARAMS))
    _, frozen = prepared.method.init(jax.random.key(config.train.seed))
    params, frozen = (
        placement.place(tree, rules.shardings(tree, prepared.mesh))
        for tree in (params, frozen)
    )
    return Run(directory, prepared, params, frozen)


def predict(run: Run, pictures: Sequence[np.ndarray]) -> Predictions:
    """Scores images of any size.

    Args:
      run: of a method that detects.
      pictures: uint8 [H, W, 3] each.

    Returns:
      Maps at the run's image size [N, h, w] and scores [N], numpy float32.

    Raises:
      ValueError: the method only generates.
    """
    if run.prepared.method.predict is None:
        raise ValueError(
            f"method {run.prepared.config.method!r} generates and does not detect; "
            "train a detector on its images with config.method='downstream'"
        )
    size = run.prepared.dataset.image_size
    batch = {
        "image": np.stack([images.resize_image(p, size) for p in pictures]) / 255.0,
        "category_id": np.zeros(len(pictures), np.int32),
        "valid": np.ones(len(pictures), bool),
    }
    batch["image"] = batch["image"].astype(np.float32)
    found = jax.jit(run.prepared.method.predict)(
        run.params, run.frozen, batch, jax.random.key(0)
    )
    return jax.tree.map(np.asarray, found)


def evaluate(run: Run, num_examples: int = 12) -> dict[str, Any]:
    """Scores a detector on its test images; writes `evaluation.json` and examples.

    Returns:
      {"mean", "per_category", "num_images", "curves"}.
    """
    prepared = run.prepared
    if prepared.method.predict is None:
        predict(run, [])
    dataset, division = prepared.dataset, prepared.division
    key = jax.random.key(prepared.config.seed)
    apply = jax.jit(prepared.method.predict)
    protocol = protocols.image_detection()
    if catalog.has_masks(dataset, division.test):
        protocol = protocols.few_shot_supervised()
    source = catalog.source(dataset, division.test)
    batches = (
        placement.place_batch(batch, prepared.mesh)
        for batch in pipeline.finite_batches(source, prepared.config.data.batch_size)
    )
    chosen = pools.spread(dataset, division.test, num_examples)
    results = runner.evaluate(
        lambda batch: apply(run.params, run.frozen, batch, key),
        batches,
        protocol.metrics,
        categories=dataset.categories,
        curves=protocol.curves,
        keep_indices=chosen,
    )
    examples = results.pop("examples")
    runs.write_evaluation(run.directory, results, examples)
    return results


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
      ValueError: the method does not generate, or the directory is in use.
    """
    if run.prepared.method.generate is None:
        raise ValueError(f"method {run.prepared.config.method!r} does not generate")
    settings = run.prepared.config.generate
    count = settings.num_images if num_images is None else num_images
    normals = _normal_images(run.prepared)
    rows = (row for row, _ in generated_rows(run, count))
    return generated.write(directory, rows, normals, overwrite)


def generated_rows(
    run: Run, num_images: int
) -> Iterator[tuple[generated.GeneratedRow, dict[str, np.ndarray]]]:
    """Yields generated pairs with what the report shows of how they came about.

    Yields:
      (row, {"normal" [H, W, 3], "inverted" [h, w, C], "change" [H, W]}).
    """
    prepared = run.prepared
    config, dataset = prepared.config, prepared.dataset
    settings = config.generate
    part = pools.training_part(dataset, prepared.division)
    requests = defect_predict.plan(part, num_images, settings.seed)
    source = catalog.source(part)
    apply = jax.jit(prepared.method.generate)
    key = jax.random.key(settings.seed)
    size = settings.batch_size
    with tqdm(total=num_images, desc="generate", unit="image", disable=None) as bar:
        for start in range(0, num_images, size):
            chosen = requests[start : start + size]
            padded = chosen + chosen[-1:] * (size - len(chosen))
            batch = _request_batch(part, source, padded)
            placed = placement.place_batch(batch, prepared.mesh)
            found = placement.to_host(apply(run.params, run.frozen, placed, key))
            masks = defect_predict.final_masks(found["mask"])
            for row, request in enumerate(chosen):
                yield (
                    _generated_row(config, part, request, found, masks, row),
                    {
                        "normal": batch["image"][row],
                        "reference": found["reference"][row],
                        "inverted": found["inverted"][row],
                        "change": found["change"][row],
                    },
                )
            bar.update(len(chosen))


def _request_batch(
    dataset: catalog.Dataset,
    source: catalog.Source,
    requests: Sequence[defect_predict.Request],
) -> Batch:
    image = np.stack([source[request.normal]["image"] for request in requests])
    return {
        "image": image.astype(np.float32) / np.float32(255),
        "mask": np.stack([request.mask for request in requests]).astype(np.float32),
        "defect_id": np.array(
            [dataset.defect_types.index(r.defect_type) for r in requests], np.int32
        ),
        "category_id": np.array(
            [dataset.categories.index(r.category) for r in requests], np.int32
        ),
        "seed": np.array([request.number for request in requests], np.int32),
    }


def _generated_row(config, dataset, request, found, masks, row):
    image = np.round(255 * np.clip(found["image"][row], 0, 1)).astype(np.uint8)
    return generated.GeneratedRow(
        category=request.category,
        defect_type=request.defect_type,
        image=image,
        mask=masks[row].astype(np.uint8),
        requested_mask=request.mask.astype(np.uint8),
        source_name=dataset.records[request.normal].name,
        prompt=config.defect_generation.defect_prompt.format(
            defect=request.defect_type.replace("_", " ")
        ),
        seed=request.number,
    )


def _normal_images(prepared: Prepared) -> dict[str, list[np.ndarray]]:
    dataset = prepared.dataset
    found: dict[str, list[np.ndarray]] = {}
    for number in prepared.division.normal:
        image, _ = dataset.load(dataset.records[number])
        found.setdefault(dataset.records[number].category, []).append(image)
    return found


def generate_then_detect(
    config: ml_collections.ConfigDict, directory: str | Path
) -> tuple[Path, tables.Table]:
    """The whole job: generator, generated set, detectors without and with it, report.

    Both detectors see the same real images, the same number of steps and the same test
    images; they differ in `config.with_generated` alone, the share of batches drawn
    from the generated set. Done parts are not done again.

    Args:
      config: of method "defect_generation" with a section `detector`, see
        `configs/defect_generation`.
      directory: of everything this writes.

    Returns:
      (path of the report, table of both detectors).
    """
    directory = Path(directory)
    generator = train(_part(config, "detector"), directory / "generator")
    made = directory / "generated"
    if not (made / generated.MANIFEST).is_file():
        shown: list[dict[str, Any]] = []
        rows = _showing(generated_rows(generator, config.generate.num_images), shown)
        generated.write(made, rows, _normal_images(generator.prepared))
        runs.write_generation(generator.directory, shown)
    results = {}
    for name, share in (("real", 0.0), ("real+generated", config.detector.share)):
        settings = detector_config(config, str(made) if share else "", share)
        detector = train(settings, directory / name)
        results[name] = evaluate(detector)
    table = runs.detection_table(
        results,
        f"{config.data.shots} real defects a category to train on; in percent, on the "
        "test images.",
    )
    written = runs.write(
        directory / "report.html",
        [directory / name for name in ("generator", *results)],
        f"Generated defects and what they are worth: {generator.prepared.dataset.name}",
        [page.table("Real against real + generated", table)],
    )
    return written, table


def detector_config(
    config: ml_collections.ConfigDict, generated_directory: str, share: float
) -> ml_collections.ConfigDict:
    """Returns the config of the downstream detector on the same data and split.

    Args:
      config: of the generator, with its section `detector`.
      generated_directory: of a generated set, or "".
      share: of defective rows that are drawn from the generated set.
    """
    detector = config.detector
    settings = ml_collections.ConfigDict(
        {
            "method": "downstream",
            "seed": config.seed,
            "data": config.data.to_dict(),
            "mesh": config.mesh.to_dict(),
            "train": config.train.to_dict(),
            "downstream": detector.downstream.to_dict(),
            "phases": {"segment": detector.phase.to_dict()},
            "mixture": {
                "segment": {
                    "normal": 0.5,
                    "defect": 0.5 * (1 - share),
                    "generated": 0.5 * share,
                }
            },
        }
    )
    settings.data.generated = generated_directory
    settings.data.batch_size = detector.batch_size
    return settings


def _part(
    config: ml_collections.ConfigDict, left_out: str
) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {key: value for key, value in config.to_dict().items() if key != left_out}
    )


def _showing(rows, shown: list[dict[str, Any]], limit: int = 12):
    """Passes rows on and keeps pictures of the first ones."""
    for row, pictures in rows:
        if len(shown) < limit:
            label = f"{row.category}, {row.defect_type.replace('_', ' ')}"
            shown.append(
                {
                    "label": label,
                    "normal": pictures["normal"],
                    "inverted": pictures["inverted"],
                    "image": row.image,
                    "mask": row.mask,
                    "requested_mask": row.requested_mask,
                }
            )
        yield row
