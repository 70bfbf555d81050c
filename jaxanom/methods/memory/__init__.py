"""Few-shot detection on photographs: a memory of normal patches, nothing trained.

The part that WinCLIP (arXiv 2303.14814, section 4.3), PatchCore (arXiv 2106.08265) and
PaDiM (arXiv 2011.08785) share: features of a frozen image tower, and how far a patch is
from those of a few normal images. No text, no diffusion, no phase of training; what is
learnt is filled in by `Method.complete` and lies in `params`, so that an opened run
looks at no shot again. Differences from the papers, each a switch or a baseline:

| there                                    | here                                    |
|------------------------------------------|-----------------------------------------|
| PatchCore: layers joined, 3 x 3 means    | one layer at stride 16, without means;  |
|                                          | several: apart, each over its level     |
| PatchCore: coreset of 1 to 25 %          | all patches up to `most_patches`        |
| PatchCore: reweighted maximum            | mean of the highest share of the map;   |
|                                          | kind "patchcore" has its equation 7     |
| PaDiM: many images, 0.01 on the diagonal | few: covariances shrunk to that of all  |
|                                          | positions (`gaussian.fit`)              |
| no copies                                | quarter turns and mirrors of the shots  |
| threshold from test images, or none      | from each shot left out of the memory   |
"""

from typing import Any

from jaxanom.contracts import Method
from jaxanom.data import catalog
from jaxanom.methods.memory import complete, options, predict, views
from jaxanom.models.features import towers


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the method from `config.memory`.

    Args:
      config: The run's config, of which only the section `memory` is read.
      dataset: The training part; only its normal images are looked at.

    Raises:
      UserError: An unknown tower, layer or choice, or a category without a normal
        image.
    """
    settings = options.read(config.memory)
    tower = towers.load(settings.tower)
    seen = views.make(
        tower, settings.taps, settings.scales, settings.border, dataset.image_size
    )
    names = dataset.categories
    memory = complete.Memory(
        settings, seen, names, tuple(views.shots_of(dataset, name) for name in names)
    )

    def init(key):
        del key  # nothing is drawn
        return complete.blank(memory), {"tower": tower.params}

    return Method(
        init=init,
        phases=(),
        predict=predict.make_predict(settings, seen),
        complete=complete.make(memory),
        normal_scores=complete.normal_scores,
    )
