"""What each term of ADP's inversion is worth to a personal token, on foundry.

    python -m benchmarks.quality.few_shot.token_terms --out runs/token_terms
        [--seeds 3] [--steps 200] [--categories marble pill] [--data_seed 21]

ADP is reconstructed from its abstract. Tokens of categories that no embedded tower saw,
a category and seed each, learn side by side on their shots. Measured beside the plain
class word, on images that were not learnt from:

- noise: the inversion's loss, the same crops, captions, timesteps and noise for all;
- windows: AUROC of CLIP's two-way answer about windows, before and after a patch was
  pasted over at least half of them (local detail);
- images: AUROC of C1 (the mean of the whole image's answer and the largest of the map)
  on normal and defective images;
- anchor: cos(g_a(v) - g_n(v), g_a(o) - g_n(o)).

Beside the terms: other numbers of shots, and a name that means nothing. Data seed 21 is
for development, 22 is reported. Done cases are kept in --out.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import harness
from benchmarks.quality.defects import measures
from jaxanom import record, trees
from jaxanom.data.foundry import names, render
from jaxanom.jobs import config_file
from jaxanom.methods.adp import model, objective, options
from jaxanom.methods.adp.channels import evidence as channels
from jaxanom.methods.adp.memory import crops, windows
from jaxanom.methods.adp.token import inversion, wording
from jaxanom.methods.adp.tuning import pairs
from jaxanom.metrics import ranking
from jaxanom.models.features import patches
from jaxanom.report import tables

NUM_VECTORS = 2
WINDOWS = (2, 3)
NONSENSE = "zork"
COVERED = 0.5
SIZE = 64
HELD_OUT, NUM_GOOD, NUM_PER_DEFECT, NUM_PAIRS, NUM_DRAWS = 4, 16, 4, 128, 32
_OFF = {"align_weight": 0.0, "state_weight": 0.0, "anchor_weight": 0.0}
_OFF |= {"prior_weight": 0.0}
_RECIPE = config_file.load("configs/adp/foundry.py").adp
_DEFAULT = options.of_objective(options.read(_RECIPE))
CLASS_WORD = "class word"


class Case(NamedTuple):
    """One line of the table: which terms, how many shots, which name."""

    terms: tuple[str, ...]
    shots: int = 2
    name: str = ""

    def options(self) -> objective.Options:
        """Default weights for the terms that are on, 0 for the others."""
        kept = {f"{term}_weight" for term in self.terms}
        return _DEFAULT._replace(**{key: 0.0 for key in _OFF if key not in kept})


ALL = ("align", "state", "anchor", "prior")
CASES = {
    "inversion alone": Case(()),
    "+ align": Case(("align",)),
    "+ state": Case(("state",)),
    "+ state + anchor": Case(("state", "anchor")),
    "all terms": Case(ALL),
    "all terms, 1 shot": Case(ALL, 1),
    "all terms, 4 shots": Case(ALL, 4),
    "all terms, a name that means nothing": Case(ALL, 2, NONSENSE),
}


class Bench(NamedTuple):
    """Towers, and what is the same for every case."""

    towers: model.Towers
    params: Any
    encode: inversion.Encoders
    words: Any
    layouts: objective.Layouts
    around: wording.Texts
    pyramid: crops.Pyramid


class Unseen(NamedTuple):
    """What tokens of a category are measured on.

    Attributes:
      held: crops of HELD_OUT normal images, as a token would learn them.
      before, after: unit features [N, K] of windows, patch by patch in pairs.
      images: CLIP's features of M images.
      label: [M] bool.
    """

    held: objective.TokenData
    before: np.ndarray
    after: np.ndarray
    images: windows.Features
    label: np.ndarray


def bench(directory: str = "embedded") -> Bench:
    """Loads the towers and lays out the sentences."""
    names = ("clip", "autoencoder", "text_encoder", "unet", "scheduler")
    parts = dict.fromkeys((*names, "variant", "clip_act"), "")
    settings = {"directory": directory, "dtype": "float32", "remat": "none", **parts}
    towers, params = model.load(ml_collections.ConfigDict(settings), 0)
    words = wording.phrases("foundry", ())
    around = wording.lay_out(towers, words, NUM_VECTORS)
    return Bench(
        towers,
        params,
        inversion.encoders(towers, WINDOWS),
        words,
        wording.training_layouts(towers, words, around, NUM_VECTORS),
        around,
        crops.pyramid(),
    )


def pictures(
    category: str, split: str, indices: Sequence[int], seed: int, kind: str = "good"
) -> np.ndarray:
    """Renders [N, 64, 64, 3] float32 in [0, 1]."""
    drawn = [
        render.render(category, split, index, seed, SIZE, defect_type=kind).image
        for index in indices
    ]
    return np.stack(drawn).astype(np.float32) / np.float32(255)


def unseen(setup: Bench, category: str, data_seed: int) -> Unseen:
    """Renders and encodes what the tokens of a category are measured on."""
    normal = pictures(category, "test", range(HELD_OUT), data_seed)
    plan = pairs.plan(normal, NUM_PAIRS, 1, seed=data_seed)
    inside = plan.region[..., None] > 0
    pasted = np.where(inside, plan.patch, plan.view)
    covered = windows.coverage(plan.region, setup.towers.grid, WINDOWS) >= COVERED
    covered[:, 0] = False  # the whole image is no window

    def parts(images):
        return trees.batched(lambda x: setup.encode.parts(setup.params, x), 8, images)

    kinds = names.defect_types(category)
    good = pictures(category, "test", range(100, 100 + NUM_GOOD), data_seed)
    bad = [
        pictures(category, "test", range(200, 200 + NUM_PER_DEFECT), data_seed, kind)
        for kind in kinds
    ]
    images = np.concatenate([good, *bad])

    def look(image):
        return windows.features(setup.towers, setup.params, image, WINDOWS)

    return Unseen(
        token_data(setup, Case(()), category, normal, 0),
        parts(plan.view)[covered],
        parts(pasted)[covered],
        trees.batched(jax.jit(look), 8, images),
        np.arange(len(images)) >= len(good),
    )


def token_data(
    setup: Bench, case: Case, category: str, shots: np.ndarray, seed: int
) -> objective.TokenData:
    """Encodes the shots of one token."""
    name = case.name or category
    plain = wording.lay_out(setup.towers, setup.words, NUM_VECTORS, name)
    start = model.class_vectors(
        setup.params, setup.towers.tokenizer, name, NUM_VECTORS, seed
    )
    return inversion.prepare(
        setup.encode,
        setup.params,
        (plain.normal, plain.anomalous),
        setup.pyramid,
        (shots, np.arange(len(shots))),
        start,
        (setup.towers.size, setup.towers.clip_size),
        len(shots),
    )


def auroc(normal: np.ndarray, anomalous: np.ndarray) -> float:
    """Area under the ROC curve of two lists of scores."""
    scores = np.concatenate([normal, anomalous]).astype(np.float32)
    positive = np.arange(len(scores)) >= len(normal)
    return ranking.auroc(ranking.count_scores(ranking.Scores(scores, positive)))


def measure(
    setup: Bench, seen: Unseen, data: Any, vectors: jax.Array | None
) -> dict[str, float]:
    """Measures one token, [n, D], or where it is None the plain class word."""
    class_normal, class_anomalous = (
        model.prototype(rows) for rows in (data.class_normal, data.class_anomalous)
    )
    normal, anomalous = class_normal, class_anomalous
    if vectors is not None:
        vectors = model.bounded(vectors, data.limit)
        normal, anomalous = (
            model.prototype(setup.encode.sentences(setup.params, layout, vectors))
            for layout in (setup.around.normal, setup.around.anomalous)
        )
    prototypes = jnp.stack([normal, anomalous])
    tau = jnp.float32(_DEFAULT.temperature)
    before, after = (
        np.asarray(
            channels.probability(jnp.asarray(rows)[None], prototypes[None], tau[None])
        )[0]
        for rows in (seen.before, seen.after)
    )
    count = len(seen.label)
    nothing = np.zeros(count, np.int32)
    evidence = channels.Evidence(
        clip=jax.tree.map(jnp.asarray, seen.images),
        prototypes=jnp.broadcast_to(prototypes, (count, *prototypes.shape)),
        distances=None,
        latents=None,
        contexts=jnp.zeros((count, 0)),
        category_id=nothing,
        left_out=nothing + patches.NOBODY,
    )
    maps, whole = channels.language_maps(evidence, jnp.broadcast_to(tau, (count,)))
    scores = np.asarray((whole + maps.max((1, 2))) / 2)
    return {
        "windows": auroc(before, after),
        "images": auroc(scores[~seen.label], scores[seen.label]),
        "anchor": 1
        - float(objective.anchor(normal, anomalous, class_normal, class_anomalous)),
    }


def noise_loss(setup: Bench, name: str | None) -> Any:
    """Makes L_TI on held-out images with the same draws for all tokens.

    Args:
      setup: see `Bench`.
      name: what captions speak of; None: the token.

    Returns:
      A jitted (vectors, data of held-out images, weights) -> scalar.
    """
    layouts = wording.training_layouts(
        setup.towers, setup.words, setup.around, NUM_VECTORS, name
    )
    plain = objective.make_loss(
        setup.towers, layouts, setup.pyramid, _DEFAULT._replace(**_OFF)
    )
    keys = jax.random.split(jax.random.key(7), NUM_DRAWS)

    def mean_loss(vectors, data, params):
        return jnp.mean(
            jax.lax.map(lambda key: plain(vectors, data, params, key)[0], keys)
        )

    return jax.jit(mean_loss)


def run_case(
    setup: Bench,
    case: Case,
    settings: argparse.Namespace,
    seen: Mapping[str, Unseen],
) -> dict[str, list[dict[str, Any]]]:
    """Learns all tokens of a case in one program; measures them and the class words.

    Returns:
      {"token": rows, CLASS_WORD: rows}, a row a category and seed.
    """
    marks = [(c, s) for c in settings.categories for s in range(settings.seeds)]
    rows = []
    for category, seed in marks:
        first = 10 * seed
        shots = pictures(
            category, "train", range(first, first + case.shots), settings.data_seed
        )
        rows.append(token_data(setup, case, category, shots, seed))
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    loss = objective.make_loss(
        setup.towers, setup.layouts, setup.pyramid, case.options()
    )
    keys = inversion.token_keys(jax.random.key(settings.data_seed), len(marks))
    vectors, trace = inversion.invert_all(
        loss, data.start, data, setup.params, keys, settings.steps
    )
    rows_of: dict[str, list[dict[str, Any]]] = {"token": [], CLASS_WORD: []}
    token_noise = noise_loss(setup, None)
    word_noise = {c: noise_loss(setup, case.name or c) for c in settings.categories}
    for number, ((category, seed), own) in enumerate(zip(marks, rows, strict=True)):
        mark = {"category": category, "seed": seed}
        learnt = measure(setup, seen[category], own, vectors[number])
        begun = measure(setup, seen[category], own, None)
        held = seen[category].held
        for row, noise in ((learnt, token_noise), (begun, word_noise[category])):
            row["noise"] = float(noise(vectors[number], held, setup.params))
        terms = {
            f"{name} fell": float(np.mean(values[number, :20] - values[number, -20:]))
            for name, values in jax.tree.map(np.asarray, trace.terms).items()
        }
        rows_of["token"].append(mark | learnt | terms)
        rows_of[CLASS_WORD].append(mark | begun)
    return rows_of


def table(results: Mapping[str, Mapping[str, Any]]) -> tables.Table:
    """Mean and deviation over categories and seeds, a line a case and its class word.

    The deviation is of the paired difference to the class word.
    """
    lines = []
    for name, rows_of in results.items():
        line: dict[str, Any] = {"case": name}
        for key, factor in (("noise", 1), ("windows", 100), ("images", 100)):
            token, word = (
                factor * np.array([row[key] for row in rows_of[kind]])
                for kind in ("token", CLASS_WORD)
            )
            digits = 1 if factor == 100 else 4
            line[key] = f"{token.mean():.{digits}f}"
            gain = tables.mean_std(list(token - word), 1, digits)
            line[f"{key} gained"] = gain
        line["anchor"] = f"{np.mean([row['anchor'] for row in rows_of['token']]):.2f}"
        lines.append(line)
    columns = {key: key for key in lines[0]}
    return tables.from_records(lines, columns, caption="Terms of the inversion")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.few_shot.token_terms"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--data_seed", type=int, default=22)
    parser.add_argument(
        "--categories", nargs="+", default=["marble", "cork", "gear", "pill", "tray"]
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--record", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    settings = parse(arguments)
    settings.out.mkdir(parents=True, exist_ok=True)
    path = (harness.RECORDS if settings.record else settings.out) / "token_terms.json"
    facts = {
        name: getattr(settings, name)
        for name in ("steps", "seeds", "data_seed", "categories")
    }
    results = harness.kept_results(path, facts)
    setup = bench()
    seen = {
        category: unseen(setup, category, settings.data_seed)
        for category in settings.categories
    }
    for name in settings.cases:
        if name in results:
            continue
        results[name] = run_case(setup, CASES[name], settings, seen)
        record.write_json(path, {"results": results, **harness.surroundings(), **facts})
        print(name, measures.spread([r["windows"] for r in results[name]["token"]]))
    text = tables.to_markdown(table(results))
    (settings.out / "token_terms.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return results


if __name__ == "__main__":
    main()
