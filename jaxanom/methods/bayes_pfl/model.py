"""What is trained: prompt bank, distributions, attention, heads."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxanom.methods.bayes_pfl import distributions, heads
from jaxanom.methods.bayes_pfl import options as settings
from jaxanom.models.clip import towers
from jaxanom.models.ops import initialise
from jaxanom.types import Array, Params, PRNGKey


class Network(nn.Module):
    """Everything that is trained; the frozen towers are no part of it.

    Attributes:
      options: `config.bayes_pfl`.
      width: D, the width of the joint space and of the text tower.
      hidden: Width inside encoders and `fuse`; half the image tower's in the paper's
        code.
    """

    options: settings.Options
    width: int
    hidden: int

    def setup(self):
        """Names the parts of the tree."""
        o, width, hidden = self.options, self.width, self.hidden
        self.prompts = Bank(o.num_prompts, o.num_context, o.num_states, width)
        self.temperatures = Temperatures()
        self.attention = heads.CrossModelAttention(len(o.layers), o.num_heads, width)
        self.class_mapping = nn.Dense(width)
        self.image_mapping = nn.Dense(width)
        self.fuse = heads.Fuse(hidden, width)
        if o.prompts == "learned":
            return
        self.context_encoder = distributions.Encoder(hidden, width, o.variance)
        self.state_encoder = distributions.Encoder(hidden, width, o.variance)
        self.context_flow = distributions.AmortisedFlow(o.num_flow_steps)
        self.normal_flow = distributions.FreeFlow(o.num_flow_steps, width)
        self.abnormal_flow = distributions.FreeFlow(o.num_flow_steps, width)
        if o.reconstruction_weight:
            self.context_decoder = distributions.Mlp(hidden, width)
            self.context_flow_out = nn.Dense(width)

    def draw(
        self, image_features: Array, patch_tokens: Array, noise: distributions.Noise
    ) -> distributions.Draws:
        """Draws R vectors of each distribution.

        Args:
          image_features: [N, D], not normalised.
          patch_tokens: [N, S, L, V]; only read with isd_input="fused".
          noise: Draws for N rows.
        """
        if self.options.prompts == "learned":
            return distributions.Draws(*map(distributions.no_draw, noise))
        constraint = self.options.flow_constraint
        seen = image_features
        if self.options.isd_input == "fused":
            seen = seen + self.fuse(patch_tokens)
        flow = self.context_flow(seen)
        context = distributions.draw(
            self.context_encoder(seen), flow, noise.context, constraint
        )

        def state_draw(module, eps):
            state, flow = module()
            gaussian_of = self.state_encoder(state)
            return distributions.draw(gaussian_of, flow, eps, constraint)

        return distributions.Draws(
            context,
            state_draw(self.normal_flow, noise.normal),
            state_draw(self.abnormal_flow, noise.abnormal),
        )

    def prompt_vectors(self, draws: distributions.Draws) -> Array:
        """Returns the bank, shifted by the draws: [N, 2, R, B, P + Q, D].

        The second axis is (normal, abnormal). One vector shifts all context tokens of
        a draw, one all of its state tokens.
        """
        context, normal, abnormal = self.prompts()  # [B, P or Q, D]

        def shifted(tokens: Array, draw: distributions.Draw) -> Array:
            return tokens + draw.end[:, :, None, None]  # [N or 1, R, B, P or Q, D]

        first = shifted(context, draws.context)
        pairs = [
            jnp.broadcast_to(shifted(state, draw), (*first.shape[:3], *state.shape[1:]))
            for state, draw in ((normal, draws.normal), (abnormal, draws.abnormal))
        ]
        return jnp.stack(
            [jnp.concatenate([first, state], axis=-2) for state in pairs], axis=1
        )

    def adapt(self, text: Array, patch_tokens: Array) -> tuple[Array, Array]:
        """`heads.CrossModelAttention` on text [N, M, D]."""
        return self.attention(text, patch_tokens)

    def pixel_margins(self, text: Array, patch_tokens: Array) -> Array:
        """Text [N, M, D], normal half first -> [N, S, M / 2, L]."""
        adapted, dense = self.attention(text, patch_tokens)
        return heads.pixel_margins(dense, adapted, self.temperatures()[0])

    def pixel_logits(self, text: Array, patch_tokens: Array) -> Array:
        """Text [N, M, D] -> [N, S, M, L], as the released code computes it."""
        adapted, dense = self.attention(text, patch_tokens)
        return heads.pixel_logits(dense, adapted, self.temperatures()[0])

    def image_feature(
        self, image_features: Array, patch_tokens: Array, stage: int
    ) -> Array:
        """What text is compared with: the pooled feature; from stage 2 on, mapped."""
        if stage == 1:
            return image_features
        return self.image_mapping(image_features + self.fuse(patch_tokens))

    def image_logits(self, text: Array, feature: Array) -> Array:
        """Text [N, M, D] of length one, feature [N, D] -> [N, M]."""
        mapped = towers.normalise(self.class_mapping(text))
        return heads.image_logits(mapped, feature, self.temperatures()[1])

    def reconstruct(self, draws: distributions.Draws) -> Array:
        """Image features rebuilt from the context draws, [N, R, D]."""
        return self.context_flow_out(self.context_decoder(draws.context.end))

    def __call__(
        self, image_features: Array, patch_tokens: Array, noise: distributions.Noise
    ) -> tuple[Array, ...]:
        """Runs every part once, for `init`: text is a stand-in for the text tower."""
        draws = self.draw(image_features, patch_tokens, noise)
        text = self.prompt_vectors(draws)[:, :, 0, :, 0].reshape(
            image_features.shape[0], -1, self.width
        )
        feature = self.image_feature(image_features, patch_tokens, 2)
        rebuilt = self.reconstruct(draws) if self.options.reconstruction_weight else ()
        margins = self.pixel_margins(text, patch_tokens)
        return margins, self.image_logits(text, feature), rebuilt


class Bank(nn.Module):
    """The learnable prompts: shared context tokens, normal and abnormal states."""

    num_prompts: int
    num_context: int
    num_states: int
    width: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array, Array]:
        """Returns [B, P, D], [B, Q, D], [B, Q, D]."""
        init = nn.initializers.normal(0.02)
        lengths = (self.num_context, self.num_states, self.num_states)
        return tuple(
            self.param(name, init, (self.num_prompts, length, self.width))
            for name, length in zip(
                ("context", "normal", "abnormal"), lengths, strict=True
            )
        )


class Temperatures(nn.Module):
    """Logarithms of the logits' scales."""

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        """Returns (pixel, image), scalars."""
        init = nn.initializers.constant(np.log(1 / 0.07))
        return self.param("pixel", init, ()), self.param("image", init, ())


def clip_projection(params: Params) -> np.ndarray:
    """Returns [V, D]: what CLIP does to its last class token, as one matrix.

    Centring, the post layer norm's scale and the projection; its bias is left out, and
    its division by the deviation drops out where the result is normalised.
    """
    scale = np.asarray(params["vision_model"]["post_layernorm"]["scale"])
    kernel = scale[:, None] * np.asarray(params["visual_projection"]["kernel"])
    return kernel - kernel.mean(axis=0)


def init(
    network: Network,
    vision_width: int,
    key: PRNGKey,
    projection: np.ndarray | None = None,
) -> Params:
    """Draws parameters as the released code does; nothing is compiled.

    Args:
      network: The module.
      vision_width: V.
      key: What all draws depend on.
      projection: [V, D] that the patch projections of all layers start at; None draws
        them.
    """
    o, width = network.options, network.width

    def around(mean: float) -> initialise.Draw:
        # The released code cuts at +-2, which is 75 deviations away.
        return lambda rng, shape: mean + initialise.normal(0.02)(rng, shape)

    def uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.uniform(-(width**-0.5), width**-0.5, shape).astype(np.float32)

    def projections(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        if projection is None:
            return initialise.normal(0.02)(rng, shape)
        return np.broadcast_to(projection, shape)

    flows = {"(normal|abnormal)_flow/.*": initialise.normal(1.0)}
    if o.prompts == "learned":
        flows = {}
    rows = jnp.zeros((1, o.draws_train, width))
    return initialise.parameters(
        network,
        key,
        jnp.zeros((1, width)),
        jnp.zeros((1, len(o.layers), 1, vision_width)),
        distributions.Noise(rows, rows, rows),
        overrides={
            "prompts/context": around(0.0),
            "prompts/normal": around(0.5),
            "prompts/abnormal": around(-0.5),
            "temperatures/.*": initialise.constant(np.log(1 / 0.07)),
            **flows,
            "attention/query/.*": uniform,
            "attention/projections": projections,
            ".*/kernel": initialise.normal(0.02),
        },
    )
