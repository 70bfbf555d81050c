"""The function tuples by which methods, transports, samplers and metrics plug in."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax

from jaxanom.types import Batch, Frozen, Metrics, Params, Predictions, PRNGKey

Drawn = tuple[Any, dict[str, Any]]
"""A row of a generated set (`data.generated.GeneratedRow`), and pictures of how it came
about: "normal", "reference", "inverted", "change"."""

LossFn = Callable[[Params, Frozen, Batch, PRNGKey], tuple[Any, Metrics]]
"""(params, frozen, batch, key) -> (scalar float32 loss, scalar metrics)."""

PredictFn = Callable[[Params, Frozen, Batch, PRNGKey], Predictions]
EncodeFn = Callable[[Frozen, Batch], Batch]


class Sampler(NamedTuple):
    """A walk: `step(state, row) -> (state, info)` drops into `jax.lax.scan`."""

    init: Callable[[Any], Any]
    step: Callable[[Any, Any], tuple[Any, Any]]


class Metric(NamedTuple):
    """A streamed metric over padded, sharded batches.

    Attributes:
      init: () -> state.
      update: (state, predictions, batch) -> state; ignores rows with `valid` False.
      finalize: state -> dict of floats.
    """

    init: Callable[[], Any]
    update: Callable[[Any, Predictions, Batch], Any]
    finalize: Callable[[Any], dict[str, float]]


class Phase(NamedTuple):
    """One stage of training.

    Attributes:
      name: also its key in `config.phases`.
      loss_fn: what is minimised; the mean is over the global batch.
      trainable: path patterns (full-match regular expressions over "a/b/c" parameter
        paths); the rest gets no gradient and no optimiser state.
      transport: couples particles between gradient and optimiser.
    """

    name: str
    loss_fn: LossFn
    trainable: tuple[str, ...] = (".*",)
    transport: optax.GradientTransformation = optax.identity()


class Drawing(NamedTuple):
    """How a method that generates draws a set of image-mask pairs.

    Attributes:
      check: (number of pairs, mesh) -> None; raises UserError where they cannot be
        drawn in equal batches.
      pairs: (`Method.generate`, params, frozen, training part of the dataset, number of
        pairs, mesh) -> iterator of `Drawn`.
    """

    check: Callable[[int, Any], None]
    pairs: Callable[..., Iterator[Drawn]]


class Posterior(NamedTuple):
    """A posterior that particles stand for, so that a sweep can vary their transport.

    The method has the phases "prior" and "particles", whose parameters are entries of
    these names, and encodes its batches.

    Attributes:
      num_prompts: Prompts that one particle is encoded with in a step.
      draw: (key, number of particles) -> params.
      frozen: What is not trained and no seed changes.
      from_training: {entry of frozen: entry of the encoded clean training images that
        it holds}.
      check: (update, settings of phase "particles") raises a UserError for a transport
        that does not fit.
      own_steps: update -> whether the transport makes whole moves, see
        `posterior.transport`.
      moves: (update, rkhs, factor of its own step size, added to its noise seed) ->
        transport of phase "particles".
      answer: (params, frozen, encoded batch) -> (log-probabilities [B, T], mutual
        information [B]).
      temperature: T such that exp(-loss / T) is the posterior of a particle.
      init_std: Deviation of the first particles' entries.
    """

    num_prompts: int
    draw: Callable[[PRNGKey, int], Params]
    frozen: Frozen
    from_training: Mapping[str, str]
    check: Callable[[str, Mapping[str, Any]], None]
    own_steps: Callable[[str], bool]
    moves: Callable[[str, str, Any, Any], optax.GradientTransformation]
    answer: Callable[[Params, Frozen, Batch], tuple[Any, Any]]
    temperature: float
    init_std: float


class Method(NamedTuple):
    """A paper as functions.

    Attributes:
      init: key -> (params, frozen); frozen weights are arguments everywhere.
      phases: in training order.
      predict: anomaly maps and image scores, or None for a method that only generates.
      encode: (frozen, batch) -> batch; run once over the data and cached, so that a
        frozen tower is paid for once. None leaves batches as they are.
      generate: (params, frozen, batch, key) -> dict of arrays; None for detectors.
      drawing: How `generate` draws a whole set; None for detectors.
      learns_pixels: Whether training reads the masks of defects.
      export: (params, frozen, directory, batch) writes what was trained in published
        formats; `batch` is one training batch, for what has to be measured.
      rescale: `Predictions.score_parts` of all test images of a category -> their final
        image scores; transductive, so for evaluation only. None keeps `image_score`.
      measured: {phase name: predictions by which a model is chosen in that phase}; None
        takes `predict`.
      posterior: what a sweep of particle posteriors varies; None for other methods.
      target: batch entry that `Predictions.classes` answers; None of a method without.
      complete: (params, frozen, key) -> (params of the same shapes, JSON facts for the
        run record); what follows the phases without a gradient, such as calibration.
      normal_scores: (params, category number) -> [n] image scores of training images,
        each scored as if it had not been seen, by which a run knows a threshold of its
        own; empty where that cannot be done. None of other methods.
    """

    init: Callable[[PRNGKey], tuple[Params, Frozen]]
    phases: tuple[Phase, ...]
    predict: PredictFn | None = None
    encode: EncodeFn | None = None
    generate: Callable[[Params, Frozen, Batch, PRNGKey], dict[str, Any]] | None = None
    drawing: Drawing | None = None
    learns_pixels: bool = False
    export: Callable[[Params, Frozen, Path, Batch], None] | None = None
    rescale: Callable[[Any], Any] | None = None
    measured: Mapping[str, PredictFn] | None = None
    target: str | None = None
    posterior: Posterior | None = None
    complete: (
        Callable[[Params, Frozen, PRNGKey], tuple[Params, dict[str, Any]]] | None
    ) = None
    normal_scores: Callable[[Params, int], Any] | None = None
