import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxanom.models.clip import prompts, towers

WORDS = ["a", "photo", "of", "bottle", "metal", "nut", "damaged", "."]
TEXT = towers.TextConfig(
    vocab_size=12,
    hidden_size=8,
    intermediate_size=16,
    projection_dim=6,
    num_hidden_layers=1,
    num_attention_heads=2,
    max_position_embeddings=12,
    bos_token_id=10,
    eos_token_id=11,
)
TOWER = towers.TextTower(TEXT)


@jax.jit
def features(params, prompt):
    return TOWER.apply({"params": params}, **prompt._asdict()).text_features


class Speller:
    """One id per word of `WORDS`; what prompts need of a tokenizer."""

    bos_id, eos_id, pad_id = 10, 11, 11

    @staticmethod
    def words(texts):
        return [[WORDS.index(word) for word in text.split()] for text in texts]


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(TOWER.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) / 2,
        shapes["params"],
    )


def table(params):
    return params["text_model"]["embeddings"]["token_embedding"]["embedding"]


def layout(template, names, num_vectors, **kwargs):
    parsed = prompts.parse(template, num_vectors, Speller.words)
    return prompts.make_layout(parsed, Speller.words(names), Speller, **kwargs)


@pytest.mark.parametrize(
    ("template", "vectors", "sentence"),
    [
        ("{vectors} {name} .", "a photo of", "a photo of {} ."),
        ("a {0:2} {name} {2}", "photo of damaged", "a photo of {} damaged"),
        ("{1} {name} {0} {1}", "a damaged", "damaged {} a damaged"),
    ],
)
def test_vectors_that_are_words_give_the_plain_sentence(
    params, template, vectors, sentence
):
    names = ["bottle", "metal nut"]
    ids = [
        [10, *Speller.words([sentence.format(name)])[0], *[11] * 12][:10]
        for name in names
    ]
    wanted = jax.jit(TOWER.apply)({"params": params}, jnp.asarray(ids)).text_features
    prompt_vectors = table(params)[np.array(Speller.words([vectors])[0])]
    made = layout(template, names, len(prompt_vectors), length=10)
    prompt = prompts.assemble(made, table(params), prompt_vectors)
    # The same additions and products in the same order.
    np.testing.assert_allclose(features(params, prompt), wanted, atol=1e-6)
    # Negative control: vectors in another order are another sentence.
    other = prompts.assemble(made, table(params), prompt_vectors[::-1])
    assert float(jnp.abs(features(params, other) - wanted).max()) > 1e-3


def test_layout_is_start_template_name_end_padding():
    made = layout("{vectors} {name} .", ["bottle", "metal nut"], 2, length=9)
    np.testing.assert_array_equal(
        made.input_ids,
        [[10, 11, 11, 3, 7, 11, 11, 11, 11], [10, 11, 11, 4, 5, 7, 11, 11, 11]],
    )
    np.testing.assert_array_equal(
        made.slots, [[-1, 0, 1] + [-1] * 6, [-1, 0, 1] + [-1] * 6]
    )
    np.testing.assert_array_equal(made.eos_positions, [5, 6])
    assert made.num_vectors == 2


def test_shortest_length_changes_no_feature(params):
    vectors = jnp.ones((2, 8))
    found = []
    for length in (None, 12):
        made = layout("{vectors} {name}", ["bottle", "metal nut"], 2, length=length)
        found.append(features(params, prompts.assemble(made, table(params), vectors)))
    assert layout("{vectors} {name}", ["metal nut"], 2).slots.shape == (1, 6)
    np.testing.assert_allclose(*found, atol=1e-6)  # masked, so exact but for sums


def test_particles_multiply_classes_and_equal_vmap(params):
    made = layout("{vectors} {name}", ["bottle", "metal nut", "nut"], 2)
    particles = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2, 8)))
    stacked = prompts.assemble(made, table(params), particles)
    assert stacked.token_embeddings.shape == (4, 3, 6, 8)
    assert stacked.eos_positions.shape == (4, 3)
    mapped = jax.vmap(lambda x: prompts.assemble(made, table(params), x))(particles)
    jax.tree.map(np.testing.assert_array_equal, stacked, mapped)


def test_vectors_of_each_class_by_vmap_over_layout_and_vectors(params):
    made = layout("{vectors} {name}", ["bottle", "metal nut"], 2)
    own = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2, 8)), jnp.float32)
    mapped = jax.jit(jax.vmap(prompts.assemble, in_axes=(0, None, 0)))(
        made, table(params), own
    )
    for k in range(2):
        alone = prompts.assemble(made, table(params), own[k])
        np.testing.assert_array_equal(
            mapped.token_embeddings[k], alone.token_embeddings[k]
        )


def test_gradient_flows_to_the_vectors_only(params):
    made = layout("a {0} {name} {2}", ["bottle", "metal nut"], 3)

    def loss(vectors, words):
        prompt = prompts.assemble(made, words, vectors)
        return jnp.sum(features(params, prompt) ** 2)

    to_vectors, to_table = jax.jit(jax.grad(loss, argnums=(0, 1)))(
        jnp.ones((3, 8)), table(params)
    )
    size = np.abs(to_vectors).max(axis=1)
    assert size[0] > 1e-3 and size[2] > 1e-3
    assert size[1] == 0  # the template does not use vector 1
    assert float(jnp.abs(to_table).max()) == 0


def test_inject_overwrites_open_places_only():
    words = jnp.arange(12.0).reshape(4, 3)
    slots = jnp.asarray([-1, 1, -1, 0])
    out = prompts.inject(words, slots, jnp.asarray([[50.0] * 3, [60.0] * 3]))
    np.testing.assert_array_equal(out, [[0, 1, 2], [60] * 3, [6, 7, 8], [50] * 3])


def test_layout_without_vectors_is_a_plain_sentence():
    made = layout("a {name}", ["nut"], 0)
    assert made.num_vectors == 0 and (made.slots == -1).all()
    np.testing.assert_array_equal(made.input_ids, [[10, 0, 5, 11]])


def test_too_long_a_sentence_is_refused_and_named():
    with pytest.raises(ValueError, match=r"sentence 1 takes 6 tokens.*length=5"):
        layout("{vectors} {name}", ["bottle", "metal nut"], 2, length=5)


@pytest.mark.parametrize("shape", [(3, 8), (1, 8), (2, 7)])
def test_vectors_of_the_wrong_shape_are_refused_under_jit_too(params, shape):
    made = layout("{vectors} {name}", ["bottle"], 2)
    with pytest.raises(ValueError, match="num_vectors=2 and the table's width 8"):
        jax.jit(prompts.assemble)(made, table(params), jnp.zeros(shape))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {class}", "place {class} is unknown"),
        ("{2} {name}", "does not fit num_vectors=2"),
        ("{1:1} {name}", "does not fit num_vectors=2"),
    ],
)
def test_unknown_places_are_refused(template, message):
    with pytest.raises(ValueError, match=message):
        layout(template, ["nut"], 2)


def test_hand_written_templates_are_checked_against_num_vectors():
    with pytest.raises(ValueError, match="uses prompt vector 4, num_vectors=2"):
        prompts.make_layout((~4, prompts.NAME), [[3]], Speller, num_vectors=2)
