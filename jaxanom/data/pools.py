"""Which images a run trains on, which it is tested on, and batches drawn from them."""

import filecmp
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxanom import record
from jaxanom.data import catalog, generated, pipeline, splits, workers
from jaxanom.data.catalog import Dataset, Source
from jaxanom.errors import UserError, check_choice

POOLS = ("normal", "defect", "generated")
RULES = ("none", "all", "test_split", *splits.RULES)


class Division(NamedTuple):
    """Record numbers of one run.

    Attributes:
      normal: normal training images.
      defect: defective images to train on.
      test: everything else of the test split, of held-out categories alone if there
        are any; shares no image with the others.
    """

    normal: tuple[int, ...]
    defect: tuple[int, ...]
    test: tuple[int, ...]


def divide(
    dataset: Dataset,
    rule: str,
    shots: int,
    seed: int,
    num_normal: int = 0,
    held_out: Sequence[str] = (),
) -> Division:
    """Divides a dataset by a few-shot rule, category by category.

    Args:
      dataset: all records.
      rule: One of `RULES`; "all" trains on every defect (for pre-training,
        where the test images come from another seed); "none" on no defect;
        "test_split" on every defect and, for normal images, on the test split's: the
        auxiliary data of zero-shot work.
      shots: for the rules that count; 0 otherwise.
      seed: Decides the draws.
      num_normal: most normal images of the train split per category; 0 is all.
      held_out: categories that are tested on and not trained on; every other one is
        then trained on and not tested on.

    Raises:
      UserError: an unknown rule, a category it does not fit, or a held-out category
        that is unknown, or none that is left to train on.
    """
    check_choice("config.data.defect_rule", rule, RULES)
    seen = [name for name in dataset.categories if name not in held_out]
    unknown = sorted(set(held_out) - set(dataset.categories))
    if unknown or not seen:
        raise UserError(
            f"config.data.held_out={tuple(held_out)} of categories "
            f"{dataset.categories}: unknown {unknown}, left to train on {seen}"
        )
    normal: list[int] = []
    split = "test" if rule == "test_split" else "train"
    for category in seen:
        numbers = catalog.select(dataset, split, category, anomalous=False)
        if num_normal and split == "train" and num_normal < len(numbers):
            numbers = splits.few_shot(dataset, category, num_normal, seed)
        normal += numbers
    trained_on: set[int] = set()
    if rule in ("all", "test_split"):
        for category in seen:
            trained_on.update(catalog.select(dataset, "test", category, anomalous=True))
    elif rule != "none":
        for category in seen:
            trained_on.update(
                splits.drawn_defects(dataset, category, rule, shots or None, seed)
            )
    test = catalog.select(dataset, "test")
    defects = [number for number in test if number in trained_on]
    used = trained_on.union(normal)
    rest = [
        number
        for number in test
        if number not in used
        and (not held_out or dataset.records[number].category in held_out)
    ]
    return Division(tuple(normal), tuple(defects), tuple(rest))


def describe(dataset: Dataset, division: Division) -> dict[str, list[str]]:
    """Returns the names of the images of each part, for the run record."""
    return {
        part: [dataset.records[number].name for number in numbers]
        for part, numbers in division._asdict().items()
    }


def check_recorded(dataset: Dataset, division: Division, run: Path) -> None:
    """Checks that images are divided as they were when a run was begun.

    A division is drawn from the images that are there. With others, images that were
    trained on may be among those to test on.

    Args:
      dataset, division: as they are now.
      run: directory of the run; where its record, or a division in it, is missing,
        there is nothing to compare.

    Raises:
      UserError: they differ; names the images.
    """
    path = run / record.RECORD
    recorded = record.read_json(path).get("split") if path.is_file() else None
    if recorded is None:
        return
    before, now = (
        {name: part for part, names in split.items() for name in names}
        for split in (recorded, describe(dataset, division))
    )
    changes = {
        "new": [name for name in now if name not in before],
        "missing": [name for name in before if name not in now],
        "moved": [
            f"{name} (from {before[name]} to {part})"
            for name, part in now.items()
            if before.get(name, part) != part
        ],
    }
    changed = "; ".join(
        f"{len(names)} {what}: {', '.join(names[:5])}"
        for what, names in changes.items()
        if names
    )
    if changed:
        raise UserError(
            f"the images are not those that {run} was trained with ({changed}). Set "
            "the folder back; keep new images in another one, for a new run or for "
            "`evaluate --on=data.directory=DIR`"
        )


def training_part(dataset: Dataset, division: Division) -> Dataset:
    """Returns the dataset with only the records a method may learn from."""
    numbers = division.normal + division.defect
    return dataset._replace(records=tuple(dataset.records[n] for n in numbers))


def check_unseen(
    dataset: Dataset, division: Division, files: Sequence[str | Path]
) -> None:
    """Verifies that files are none of those trained on, byte by byte.

    Rendered images, which are no files, are not compared.

    Raises:
      UserError: names the file and the one that it equals.
    """
    trained_on: dict[int, list[Path]] = {}
    for number in division.normal + division.defect:
        path = Path(dataset.records[number].image)
        if path.is_file():
            trained_on.setdefault(path.stat().st_size, []).append(path)
    for file in map(Path, files):
        for path in trained_on.get(file.stat().st_size, ()):
            if filecmp.cmp(file, path, shallow=False):
                raise UserError(
                    f"{file} was trained on (it equals {path}); what is promised of "
                    "new images rests on others: choose normal images beside these"
                )


def sources(
    dataset: Dataset, division: Division, generated_directory: str = ""
) -> dict[str, Source]:
    """Returns the pools a mixture can draw from: normal, defect, generated.

    Raises:
      UserError: the generated set has a category or defect type the dataset lacks.
    """
    pools = {
        "normal": catalog.source(dataset, division.normal),
        "defect": catalog.source(dataset, division.defect),
    }
    if generated_directory:
        records = generated.read(generated_directory)
        generated_set = catalog.from_records(
            "generated",
            [record for record in records if record.defect_type != catalog.GOOD],
            dataset.image_size,
            dataset.categories,
            dataset.defect_types,
            keeps_aspect=dataset.keeps_aspect,
        )
        pools["generated"] = catalog.source(generated_set)
    return pools


def check_mixtures(
    pools: Mapping[str, Source],
    mixtures: Mapping[str, Mapping[str, float]],
    phases: Sequence[str],
) -> None:
    """Checks what `batch_maker` needs, before anything is paid for.

    Args:
      pools, mixtures: as in `batch_maker`.
      phases: names that need a mixture.

    Raises:
      UserError: a phase without a mixture, a mixture without weight, a negative
        weight, or weight on a pool that does not exist or is empty.
    """
    for phase in phases:
        if phase not in mixtures:
            raise UserError(f"config.mixture.{phase} is missing: phase {phase!r}")
    for phase, weights in mixtures.items():
        for name, weight in weights.items():
            if weight < 0:
                raise UserError(f"config.mixture.{phase}.{name}={weight}; wanted >= 0")
            if weight and not len(pools.get(name, ())):
                raise UserError(
                    f"config.mixture.{phase}.{name}={weight}, but there are no "
                    f"{name} images; set it to 0"
                    + (", or set config.data.generated" if name == "generated" else "")
                )
        if not any(weights.values()):
            raise UserError(f"config.mixture.{phase} gives no pool a weight")


def check_masks(dataset: Dataset, numbers: Sequence[int]) -> None:
    """Checks that it is known where defects are, for what learns from pixels.

    Args:
      dataset: all records.
      numbers: Record numbers of the defects to train on.

    Raises:
      UserError: defects without a mask; names the folders that lack them.
    """
    missing = catalog.unmasked(dataset, numbers)
    if missing:
        raise UserError(
            f"{sum(missing.values())} defective images to train on have no mask; all "
            "of their pixels would be taken for flawless: put "
            f"<image>_mask.png into {', '.join(missing)}, or train on no defects "
            "(config.mixture.<phase>.defect=0)"
        )


def batch_maker(
    pools: Mapping[str, Source],
    mixtures: Mapping[str, Mapping[str, float]],
    batch_size: int,
    seed: int,
    transform: pipeline.Transform | None = None,
    rows: Sequence[int] | None = None,
    num_workers: int = 0,
) -> Callable[[str, int], Iterator[Mapping[str, Any]]]:
    """Returns (phase name, start step) -> endless host batches, made ahead in a thread.

    Args:
      pools: by name, see `POOLS`.
      mixtures: {phase name: {pool name: weight}}.
      batch_size: rows of every batch.
      seed: Decides all draws.
      transform: changes every example anew; see `pipeline.batches`.
      rows: The rows of every batch that this process holds; None: all.
      num_workers: processes of Grain that decode and augment; 0: a thread of this
        process. Batches do not depend on it.

    Raises:
      UserError: see `check_mixtures`; workers without Grain.
    """
    check_mixtures(pools, mixtures, ())
    if num_workers:
        workers.check()
    mixed = {}
    for number, (phase, weights) in enumerate(sorted(mixtures.items())):
        weighted = {name: weight for name, weight in weights.items() if weight}
        phase_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        mixed[phase] = (
            pipeline.mixture(
                [pools[name] for name in weighted], list(weighted.values()), phase_seed
            ),
            phase_seed,
        )

    def make(phase: str, start_step: int) -> Iterator[Mapping[str, Any]]:
        source, phase_seed = mixed[phase]
        if num_workers:
            example_at = pipeline.examples_by_place(source, phase_seed, transform)
            return workers.batches(
                example_at, batch_size, start_step, num_workers, rows
            )
        return pipeline.Prefetch(
            pipeline.batches(
                source, batch_size, phase_seed, start_step, transform, rows
            )
        )

    return make


def normal_images(dataset: Dataset, division: Division) -> dict[str, list[np.ndarray]]:
    """Returns {category: its normal training images}, uint8 [H, W, 3] each."""
    by_category: dict[str, list[np.ndarray]] = {}
    for number in division.normal:
        image, _ = dataset.load(dataset.records[number])
        by_category.setdefault(dataset.records[number].category, []).append(image)
    return by_category


def spread(dataset: Dataset, numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """Picks up to `count` rows of a source, turn by turn over its kinds of image."""
    kinds: dict[tuple[str, str], list[int]] = {}
    for row, number in enumerate(numbers):
        item = dataset.records[number]
        kinds.setdefault((item.category, item.defect_type), []).append(row)
    turns = max(map(len, kinds.values()), default=0)
    order = [
        rows[turn]
        for turn in range(turns)
        for rows in kinds.values()
        if turn < len(rows)
    ]
    return tuple(order[:count])
