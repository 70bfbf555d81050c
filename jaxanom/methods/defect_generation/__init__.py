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
| a defect asked of normals    | never                        | a share of their masks|
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxanom.contracts import Method, Phase
from jaxanom.data import catalog
from jaxanom.errors import UserError
from jaxanom.methods.defect_generation import drawing as whole_sets
from jaxanom.methods.defect_generation import model, objective, predict
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
      config: its `model`, `defect_generation`, `generate` and `seed` are read.
      dataset: the training part: its categories and defect types name the prompts, the
        masks of its defects are p(m).

    Returns:
      A method that generates. Phases: "adapt" (fits the UNet to normal images) and
      "finetune" (on defects); both minimise the same loss, on other data.

    Raises:
      UserError: backbone, option or image size that does not fit.
    """
    settings = config.defect_generation
    options = objective.Options(
        background_weight=settings.background_weight,
        background_input=settings.background_input,
        masked_attention=settings.masked_attention,
        hide_background=settings.hide_background,
        area_balanced=settings.area_balanced,
        attention_pooling=settings.attention_pooling,
        draw_normal_masks=settings.draw_normal_masks,
        refusal_share=settings.refusal_share,
    )
    # A run's stored config may be older than an option; the default is what it did.
    chosen = (name for name in predict.Options._fields if name in config.generate)
    drawing = predict.Options(**{name: config.generate[name] for name in chosen})
    objective.check(options)
    predict.check(drawing)
    for key, value, known in (
        ("defect_generation.latent_pooling", settings.latent_pooling, model.POOLINGS),
        ("model.dtype", config.model.dtype, DTYPES),
    ):
        if value not in known:
            raise UserError(f"config.{key}={value!r}; choose one of {known}")
    implementation = _implementation(config.model.implementation, settings)
    source = config.model.directory
    loading = sources.chosen(config.model)
    autoencoder = implementation(
        backbones.load_autoencoder(config.model.autoencoder or source, loading)
    )
    grid = backbones.latent_grid(autoencoder, dataset.image_size)
    text = implementation(
        backbones.load_text_encoder(config.model.text_encoder or source, loading)
    )
    network, fresh_params = _unet(config.model, autoencoder, text.width, config.seed)
    grids = unet.attention_resolutions(network.config, *grid)
    if text.width != network.config.cross_attention_dim:
        raise UserError(
            f"the text tower is {text.width} wide and the UNet reads contexts of "
            f"{network.config.cross_attention_dim}; set config.model.text_encoder to "
            "the tower the UNet was trained with"
        )
    contexts = _contexts(text, dataset, settings)
    latent_pooling = settings.latent_pooling
    lora_rank, lora_scale = settings.lora_rank, settings.lora_scale
    bank = _latent_bank(dataset, grid, latent_pooling)
    scheduler = config.model.scheduler or source
    schedule = backbones.load_schedule(scheduler)
    alphas_cumprod = schedule.alphas_cumprod
    is_velocity = schedule.prediction_type == "v_prediction"
    dtype = jnp.dtype(config.model.dtype)
    compute = network.clone(dtype=dtype, remat=remat.resolve(config.model.remat))
    compute = implementation(backbones.Tower(compute, fresh_params)).module
    unet_apply = backbones.noise_apply(compute, scheduler)

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
        return lora.merge(frozen["unet"], params["lora"], lora_scale)

    def encode(frozen: Frozen, batch: Batch) -> Batch:
        moments = autoencoder.module.apply(
            {"params": frozen["vae"]}, batch["image"], method="encode"
        )
        small = model.pool_mask(batch["mask"], grid, latent_pooling)
        kept = ("label", "category_id", "defect_id", "valid")
        return {
            "latents": moments.mean.astype(jnp.float32),
            "latent_mask": small,
            **{name: batch[name] for name in kept},
        }

    loss = objective.loss_fn(
        unet_apply, read_params, alphas_cumprod, options, grids, is_velocity
    )
    generate = predict.generator(
        autoencoder.module,
        unet_apply,
        read_params,
        schedule,
        drawing,
        options,
        grids,
        latent_pooling,
    )
    phases = tuple(Phase(name, loss) for name in PHASES)
    return Method(
        init=init,
        phases=phases,
        encode=encode,
        generate=generate,
        drawing=whole_sets.of_config(config),
        learns_pixels=True,
    )


def _implementation(name: str, settings: Any) -> Callable[[Any], Any]:
    """Returns tower -> tower, computed by the implementation of that name."""
    if name == "hf_flax" and settings.masked_attention:
        raise UserError(
            "config.model.implementation='hf_flax' has no masked cross-attention; set "
            "config.defect_generation.masked_attention=False, or "
            "config.model.implementation='ours'"
        )
    return lambda tower: backbones.implemented(tower, name)


def _unet(settings: Any, autoencoder: backbones.Tower, width: int, seed: int):
    """Returns (module, parameters): loaded, or new for this latent space."""
    if settings.unet != "scratch":
        name = settings.unet or settings.directory
        tower = backbones.load_unet(name, sources.chosen(settings))
        wanted = backbones.latent_channels(autoencoder)
        if tower.module.config.in_channels != wanted:
            raise UserError(
                f"the UNet takes {tower.module.config.in_channels} latent channels and "
                f"the autoencoder makes {wanted}; set config.model.unet='scratch' or "
                "config.model.autoencoder to the one the UNet was trained with"
            )
        return tower
    sizes = backbones.small_unet(
        backbones.latent_channels(autoencoder),
        width,
        settings.block_out_channels,
        settings.layers_per_block,
        settings.num_heads,
        settings.fine_self_attention,
    )
    return backbones.new_unet(sizes, jax.random.key(seed))


def _contexts(
    text: backbones.TextEncoder, dataset: catalog.Dataset, settings: Any
) -> model.Contexts:
    """Encodes one prompt per defect type and per category, and the hole's."""
    defects = [settings.hole_prompt] + [
        _fill("defect_prompt", settings.defect_prompt, defect=name)
        for name in dataset.defect_types[1:]
    ]
    categories = [
        _fill("background_prompt", settings.background_prompt, category=name)
        for name in dataset.categories
    ]
    states = text.encode(defects + categories)
    split = len(defects)
    return model.Contexts(
        defect=jnp.asarray(states[:split]),
        background=jnp.asarray(states[split:]),
        hole=jnp.asarray(states[0]),
    )


def _fill(key: str, template: str, **names: str) -> str:
    """Fills one prompt template; UserError names its config key."""
    words = {field: name.replace("_", " ") for field, name in names.items()}
    try:
        return template.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"config.defect_generation.{key}={template!r}: the one field it may hold "
            f"is {{{next(iter(names))}}}"
        ) from error


def _latent_bank(dataset: catalog.Dataset, grid: tuple[int, int], how: str):
    """Pools the training masks to the latent grid, [M, h, w]; drops those that vanish.

    Raises:
      UserError: no training defect has a mask, or none survives the pooling.
    """
    numbers = catalog.select(dataset, anomalous=True)
    masks = [dataset.load(dataset.records[number])[1] for number in numbers]
    pooled = model.pool_mask(model.mask_bank(masks), grid, how)
    kept = np.asarray(pooled)[np.asarray(pooled).any((1, 2))]
    if not len(kept):
        raise UserError(
            f"every training mask vanishes on the latent grid {grid}; set "
            "config.defect_generation.latent_pooling='max'"
        )
    return jnp.asarray(kept)
