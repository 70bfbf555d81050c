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
name (`text_form="shared"`); images are encoded once.
"""

from typing import Any

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.methods.app import coupling, objective, parts, predict
from jaxanom.types import Frozen, Params, PRNGKey


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the method from `config.app`.

    Args:
      config: its `app`, `model`, `phases` and `mesh` are read.
      dataset: the training part; its categories and defect types name the classes, its
        size is n.

    Raises:
      UserError: an option, a class name or a backbone that does not fit.
    """
    found = parts.assemble(config, dataset)
    coupling.check(found.particles, config.phases.particles, config.app.prior)
    num_particles = config.app.num_particles
    if num_particles < 1:
        raise UserError(f"config.app.num_particles={num_particles}; wanted 1 or more")

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        return parts.params(found, key, num_particles), parts.frozen(found, dataset)

    network, prior = found.network, found.prior
    moves = coupling.make(found.particles, found.num_data, network.tower, config.mesh)
    return Method(
        init=init,
        phases=(
            Phase("prior", objective.prior_loss(network, prior), ("prior/.*",)),
            Phase(
                "particles",
                objective.particle_loss(network, prior),
                objective.trainable(prior),
                moves,
            ),
        ),
        encode=parts.encoder(found),
        predict=predict.make_predict(
            network,
            lambda frozen, image: found.pair.encode_image(frozen["image"], image),
            found.answers,
        ),
        target=network.target,
    )
