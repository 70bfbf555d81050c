"""Image features, prompt assembly and text embeddings against the released modules."""

import numpy as np
import pytest

from jaxanom.methods.bayes_pfl import distributions, objective, sentences
from jaxanom.models.clip import positions


def test_image_features_and_patch_tokens(golden):
    arrays = golden.arrays("vision")
    found = golden.features(golden.images(arrays["images"]))
    golden.close(found.image_features, arrays["image_features"])
    golden.close(found.patch_tokens, np.moveaxis(arrays["patch_tokens"], 0, 1))


def test_positions_at_another_grid(golden):
    arrays = golden.arrays("misc")
    _, to = arrays["posemb_grid"]
    table = positions.resize(arrays["posemb_in"][1:], (to, to), antialias=True)
    golden.close(table, arrays["posemb_out"][1:])
    # Negative control: the form without antialiasing is another kernel.
    other = positions.resize(arrays["posemb_in"][1:], (to, to))
    assert np.abs(other - arrays["posemb_out"][1:]).max() > 100 * golden.forward


def draws(golden, arrays, over_draws):
    """Draws whose ends are the recorded ones."""

    def of(tag):
        end = arrays[f"zk_{tag}"]
        end = end[None] if over_draws else end[:, None]
        return distributions.Draw(None, None, None, end, None)

    return distributions.Draws(of("isd"), of("iad_normal"), of("iad_abnormal"))


@pytest.mark.parametrize("case", ["train", "test"])
def test_prompts_sentences_and_text_embeddings(golden, case):
    arrays = golden.arrays(f"text_{case}")
    found = draws(golden, arrays, case == "test")
    network, params = golden.network(), golden.params()
    token_ids = arrays["token_ids"]
    num_images = token_ids.shape[0]
    category_id = np.arange(num_images)
    vectors = network.apply({"params": params}, found, method="prompt_vectors")

    if case == "train":
        bank = network.bind({"params": params}).prompts()
        for name, state in zip(("normal", "abnormal"), bank[1:], strict=True):
            joined = np.concatenate([bank[0], state], axis=1)
            golden.close(joined, arrays[f"prompt_bank_{name}"], what=name)

    length = token_ids.shape[1]
    whole = golden.names(token_ids, length)
    embedded = sentences.assemble(whole, vectors, category_id)  # [N, 2, R, B, L, D]
    position = golden.clip_weights["positional_embedding"]
    for i, name in enumerate(("normal", "abnormal")):
        sequences = (embedded[:, i] + position).reshape(
            arrays[f"seq_{name}"].shape  # [N, B, L, D], or [R, B, L, D] of one image
        )
        golden.close(sequences, arrays[f"seq_{name}"], what=name)

    for names in (whole, golden.names(token_ids)):  # in full, and cut
        raw = sentences.encode(
            golden.towers.text, golden.clip_params, names, vectors, category_id
        )
        for i, name in enumerate(("normal", "abnormal")):
            wanted = arrays[f"emb_{name}"]
            golden.close(raw[:, i].reshape(wanted.shape), wanted, what=name)
    assert names.words.shape[1] < length / 2  # cut it was

    frozen = golden.frozen(token_ids)
    text = objective.text_features(
        network, golden.towers.text, params, frozen, found, category_id
    )
    wanted = arrays["text_embeddings"]
    golden.close(text.reshape(wanted.shape), wanted)
    # Negative control: abnormal before normal is another array.
    swapped = np.asarray(text[:, ::-1]).reshape(wanted.shape)
    assert np.abs(swapped - wanted).max() > 100 * golden.forward


def test_class_names_are_worded_as_released(golden):
    for categories in golden.json("tokens").values():
        for category, row in categories.items():
            assert f"X {sentences.class_name(category, 'released')}" == row["sentence"]
    assert sentences.class_name("Juice_Bottle", "released") == "juice_bottle"
    assert sentences.class_name("Juice_Bottle", "spaced") == "juice bottle"


def test_sentences_start_and_end_where_the_released_tokens_do(golden):
    """Everything but the word pieces, which need CLIP's own vocabulary."""
    num_vectors = golden.sizes.P + golden.sizes.Q
    for categories in golden.json("tokens").values():
        for row in categories.values():
            ids = np.array(row["ids"])[None]
            names = golden.names(np.minimum(ids, ids.max()))
            wanted = row["eot_index"] + num_vectors - 1
            assert names.eos_positions.tolist() == [wanted]
