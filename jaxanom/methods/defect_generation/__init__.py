"""Background-aware defect generation (arXiv 2411.16767).

No code of the authors is public; equations are cited as shown by the first author.
Where the paper is silent or can be read in two ways, both are options:

| question                     | default                      | other                 |
|------------------------------|------------------------------|-----------------------|
| z_t^m while sampling (Eq. 9) | (1-m) z_t*, `recompute`      | `replay`              |
| timestep of the inversion    | `source`, as Eq. 8 writes it | `target`, fixed point |
| solver of the defect's moves | `ddim`, as Eq. 9 writes it   | `dpmpp_2m`            |
| masked cross-attention       | on (Eqs. 10-11)              | plain single prompts  |
| pooling of m                 | max                          | nearest, area         |
| mask refinement (Eq. 13)     | Otsu on the pixel difference | fixed threshold, off  |
| guidance of the defect       | none                         | a scale, away from C2 |
| pixels outside the mask      | as decoded                   | the normal image's    |
| trained weights              | the whole UNet               | LoRA                  |
| prompt of the hole           | empty                        | any text              |
| a defect told to normals     | never                        | a share of their masks|

Pinned by tests/methods/defect_generation.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.errors import UserError, check_choice
from jaxanom.methods.defect_generation import (
    drawing,
    model,
    objective,
    options,
    placement,
    predict,
)
from jaxanom.models import backbones
from jaxanom.models.checkpoints import sources
from jaxanom.models.latent import unet
from jaxanom.models.ops import lora, remat
from jaxanom.types import Batch, Frozen, Params, PRNGKey

PHASES = ("adapt", "finetune")
DTYPES = ("float32", "bfloat16", "float16")


def make(config: Any, dataset: catalog.Dataset) -> Method:
    """Builds the method from its sections of the config.

    Args:
      config: The run's config, of which `model`, `defect_generation`, `generate` and
        `seed` are read.
      dataset: The training part: its categories and defect types name the prompts, the
        masks of its defects are p(m).

    Returns:
      A method that generates. Phases: "adapt" (fits the UNet to normal images) and
      "finetune" (on defects); both minimise the same loss, on other data.

    Raises:
      UserError: A backbone, option or image size does not fit.
    """
    training = options.read_training(config.defect_generation)
    generation = options.read_generation(config.generate)
    settings = config.model
    check_choice("config.model.dtype", settings.dtype, DTYPES)
    if settings.implementation == "hf_flax" and training.masked_attention:
        raise UserError(
            "config.model.implementation='hf_flax' has no masked cross-attention; set "
            "config.defect_generation.masked_attention=False, or "
            "config.model.implementation='ours'"
        )

    def implemented(tower: Any) -> Any:
        return backbones.implemented(tower, settings.implementation)

    source, loading = settings.directory, sources.chosen(settings)
    autoencoder = implemented(
        backbones.load_autoencoder(settings.autoencoder or source, loading)
    )
    text = implemented(
        backbones.load_text_encoder(settings.text_encoder or source, loading)
    )
    network, fresh_params = _unet(settings, autoencoder, text.width, config.seed)
    grid = backbones.latent_grid(autoencoder, dataset.image_size)
    grids = unet.attention_resolutions(network.config, *grid)
    contexts = model.encode_prompts(text, dataset, training)
    bank = placement.latent_bank(dataset, grid, training.latent_pooling)
    scheduler = settings.scheduler or source
    schedule = backbones.load_schedule(scheduler)
    network = network.clone(
        dtype=jnp.dtype(settings.dtype), remat=remat.resolve(settings.remat)
    )
    network = implemented(backbones.Tower(network, fresh_params)).module
    unet_apply = backbones.noise_apply(network, scheduler)
    lora_rank, latent_pooling = training.lora_rank, training.latent_pooling

    def init(key: PRNGKey) -> tuple[Params, Frozen]:
        frozen = {
            "vae": autoencoder.params,
            "contexts": contexts._asdict(),
            "latent_bank": bank,
        }
        if lora_rank == 0:
            return {"unet": fresh_params}, frozen
        update = lora.init(fresh_params, lora_rank, key)
        return {"lora": update}, {**frozen, "unet": fresh_params}

    def read_params(params: Params, frozen: Frozen) -> Params:
        if "unet" in params:
            return params["unet"]
        return lora.merge(frozen["unet"], params["lora"])

    def encode(frozen: Frozen, batch: Batch) -> Batch:
        moments = autoencoder.module.apply(
            {"params": frozen["vae"]}, batch["image"], method="encode"
        )
        kept = ("label", "category_id", "defect_id", "valid")
        return {
            "latents": moments.mean.astype(jnp.float32),
            "latent_mask": model.pool_mask(batch["mask"], grid, latent_pooling),
            **{name: batch[name] for name in kept},
        }

    is_velocity = schedule.prediction_type == "v_prediction"
    loss = objective.loss_fn(
        unet_apply, read_params, schedule.alphas_cumprod, training, grids, is_velocity
    )
    generate = predict.generator(
        autoencoder.module,
        unet_apply,
        read_params,
        schedule,
        generation,
        training,
        grids,
    )
    phases = tuple(Phase(name, loss) for name in PHASES)
    return Method(
        init=init,
        phases=phases,
        encode=encode,
        generate=generate,
        drawing=drawing.sets(generation, training.defect_prompt),
        learns_pixels=True,
    )


def _unet(
    settings: Any, autoencoder: backbones.Tower, width: int, seed: int
) -> backbones.Tower:
    """Returns the UNet: loaded, or new for these latents and this text tower."""
    channels = backbones.latent_channels(autoencoder)
    if settings.unet == "scratch":
        sizes = backbones.small_unet(
            channels,
            width,
            settings.block_out_channels,
            settings.layers_per_block,
            settings.num_heads,
            settings.fine_self_attention,
        )
        return backbones.new_unet(sizes, jax.random.key(seed))
    name = settings.unet or settings.directory
    tower = backbones.load_unet(name, sources.chosen(settings))
    sizes = tower.module.config
    if sizes.in_channels != channels:
        raise UserError(
            f"the UNet takes {sizes.in_channels} latent channels and the autoencoder "
            f"makes {channels}; set config.model.unet='scratch' or "
            "config.model.autoencoder to the one the UNet was trained with"
        )
    if sizes.cross_attention_dim != width:
        raise UserError(
            f"the text tower is {width} wide and the UNet reads contexts of "
            f"{sizes.cross_attention_dim}; set config.model.text_encoder to the tower "
            "the UNet was trained with"
        )
    return tower
