"""The small towers shipped with jaxanom: autoencoder, CLIP, text-conditional UNet.

No paper of its own: the objectives are the published ones (arXiv 2112.10752 for the
autoencoder and the latent UNet, arXiv 2103.00020 for CLIP), at a size that two cores
can train on the procedural dataset. Two additions, each with its switch:

- CLIP's patch tokens are taught to tell defect from flawless (`dense_weight`), because
  a tower of this size sees too few images to localise by itself;
- part of the UNet's rows have a hole cut out (`hole_fraction`), so that the background
  branch of defect generation starts from weights that know holes.
"""

from typing import Any

from jaxanom.contracts import Method
from jaxanom.data import catalog
from jaxanom.errors import check_choice
from jaxanom.methods.pretraining import autoencoder, contrastive, denoiser

TOWERS = {
    "autoencoder": autoencoder.make,
    "clip": contrastive.make,
    "unet": denoiser.make,
}


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the training of one tower, `config.pretraining.tower`."""
    tower = config.pretraining.tower
    check_choice("config.pretraining.tower", tower, TOWERS)
    return TOWERS[tower](config, dataset)
