"""APP: a particle posterior over prompts with a data-dependent prior (2401.06799).

Two phases: "prior" fits the network that maps images to prompt vectors; "particles"
moves N sets of prompt vectors towards the posterior around it. Classes are image
categories, defect types, or the two states of an object (`config.app.task`).

Where the paper (as far as it could be seen) and the released code differ:

| paper                      | released code             | here                   |
|----------------------------|---------------------------|------------------------|
| SVGD, particles repel      | independent SGD of each   | `particles.update`     |
| Gaussian prior of theta    | on the mean over tokens   | `prior.support`        |
| variance sigma^2           | reg / S or reg / S^2      | `prior.lambda_rule`    |
| prior of each image        | a reshape mixes images    | `prior.layout`         |
| posterior of n data        | mean cross-entropy, no n  | `particles.num_data`   |
| the prior's network learns | before, then frozen       | `prior.train`          |
| posterior average          | mean logits, and prior's  | `predict.*`            |
| -                          | weight decay, a 2nd prior | `prior.weight_decay`   |

Defaults follow the paper's method with the released loss; `update="map"` and
`layout="reference_reshuffle"` follow the code, which tests/parity/app pins. With many
dimensions and few particles SVGD's spread is far too small (as 1 / D, see the plot
benchmarks/records/variance_collapse.png, and "noisy_svgd" for what repairs it): the
disagreement of particles is no measure of calibration.

Exact savings: sentences end at their end token and share what stands before the class
name; images are encoded once.
"""

from typing import Any

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.methods.app import coupling, objective, options, parts, predict, swept
from jaxanom.types import Frozen, Params, PRNGKey


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the method from `config.app`.

    Args:
      config: Its `app`, `model`, `phases` and `mesh` are read.
      dataset: The training part; its categories and defect types name the classes, its
        size is n.

    Raises:
      UserError: An option, a class name or a backbone that does not fit.
    """
    pieces = parts.assemble(config, dataset)
    own, network = pieces.options, pieces.network
    options.check_moves(own.particles, config.phases.particles, own.prior)

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        frozen = parts.frozen(pieces) | parts.train_features(pieces, dataset)
        return parts.params(pieces, key, own.num_particles), frozen

    return Method(
        init=init,
        phases=(
            Phase("prior", objective.prior_loss(network, own.prior), ("prior/.*",)),
            Phase(
                "particles",
                objective.particle_loss(network, own.prior, pieces.weight),
                objective.trainable(own.prior),
                coupling.make(
                    own.particles, pieces.num_data, network.tower, config.mesh
                ),
            ),
        ),
        encode=parts.encoder(pieces),
        predict=predict.make_predict(
            network,
            lambda frozen, image: pieces.pair.encode_image(frozen["image"], image),
            own.predict,
        ),
        target=network.target,
        posterior=swept.posterior(pieces, config.mesh),
    )
