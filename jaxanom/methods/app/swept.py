"""What a sweep varies and measures of the particles, see `contracts.Posterior`."""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxanom.contracts import Posterior
from jaxanom.errors import UserError
from jaxanom.methods.app import coupling, parts, predict
from jaxanom.methods.app import options as settings
from jaxanom.posterior import transport
from jaxanom.types import Array, Batch, Frozen, Params


def posterior(pieces: parts.Parts, mesh_config: Any) -> Posterior:
    """Returns the posterior that `config.app` describes, its transport left open.

    Args:
      pieces: The method in pieces.
      mesh_config: `config.mesh`.
    """
    options, network = pieces.options, pieces.network

    def own_steps(update: str) -> bool:
        return settings.makes_whole_moves(options.particles._replace(update=update))

    def check(update: str, phase: Mapping[str, Any]) -> None:
        moved = options.particles._replace(update=update)
        settings.check_moves(moved, phase, options.prior)
        if moved.backend != "auto":
            raise UserError(
                f"config.app.particles.backend={moved.backend!r}: a sweep spreads "
                "runs, not particles, over devices; set it to 'auto'"
            )

    def moves(
        update: str, rkhs: str, factor: Array, shift: Array
    ) -> optax.GradientTransformation:
        own = options.particles
        varied = own._replace(
            update=update,
            rkhs=rkhs if update in transport.COUPLED else own.rkhs,
            step_size=own.step_size * factor,
            noise_seed=own.noise_seed + shift,
        )
        return coupling.make(varied, pieces.num_data, network.tower, mesh_config)

    def answer(params: Params, frozen: Frozen, batch: Batch) -> tuple[Array, Array]:
        logits = predict.posterior_logits(
            network,
            params,
            frozen,
            batch["image_features"],
            batch["category_id"],
            options.predict,
        )
        mixed = predict.mixed_logits(logits, options.predict)
        unsure = predict.uncertainty(logits.particles)
        return jax.nn.log_softmax(mixed), unsure["mutual_information"]

    reads_training = options.prior.center == "dataset"
    return Posterior(
        num_prompts=len(pieces.named.names),
        draw=lambda key, num_particles: parts.params(pieces, key, num_particles),
        frozen=parts.frozen(pieces),
        from_training={"train_features": "image_features"} if reads_training else {},
        check=check,
        own_steps=own_steps,
        moves=moves,
        answer=answer,
        temperature=coupling.temperature(options.particles, pieces.num_data),
        init_std=options.init_std,
    )
