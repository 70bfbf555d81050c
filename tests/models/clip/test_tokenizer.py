import gzip
import json
import shutil
import unicodedata

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from jaxanom.models.clip import tokenizer

OBJECTS = [
    "bottle",
    "metal nut",
    "hazelnut",
    "transistor",
    "zipper",
    "PCB-4",
    "capsule",
]
DEFECTS = ["scratch", "broken_large", "thread side", "glue strip", "good", "poke"]
CORPUS = [f"a photo of a {x} with a {y}." for x in OBJECTS for y in DEFECTS]

ODD = [
    "",
    " ",
    "  two   spaces\tand\ttabs\nand lines ",
    "MiXeD CaSe",
    "it's we're they'll I'd you've he'm don't O'Neill's 's",
    "'S 'RE 'LL quotes \"double\" ‘curly’",
    "numbers 3.14159 1,000,000 42nd 2024-01-31 ½ ² Ⅷ ٣",
    "a-b_c/d\\e|f+g=h*i^j~k`l@m#n$o%p&q",
    "!!! ??? ... --- *** ((([[[{{{}}}]]])))",
    "<html><b>bold</b></html> &amp; &lt;",
    "naïve café Zürich Ærøskøbing façade smörgåsbord",
    unicodedata.normalize("NFD", "naïve café Zürich"),
    "Привет мир Ελλάδα مرحبا שלום हिन्दी ไทย",
    "emoji 😀 🇩🇪 ❤️",
    "math ∑ ∫ √ ≈ ≠ ∞ µm Ω °C ±5%",
    "İstanbul ﬁne ß ſ Å",
    "\u00a0non\u2009breaking\u3000spaces",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "a" * 300,
    "tokens <|startoftext|> inside <|endoftext|> text",
    "x<|endoftext|>y",
    "</w> w> </ <",
]
# transformers' slow class sets CJK characters apart and drops joiners; its fast class
# and the released CLIP code do not.
FAST_ONLY = ["汉字 かな 한국어", "joined 👩\u200d🔬 emoji"]
TEXTS = [*ODD, *CORPUS, *(f"{a} {b}!" for a in DEFECTS for b in OBJECTS)]


ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " \t\n",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "àéîõüçñßøåÀÉÎÕÜÇÑØÅ",
    "абвгдежзАБВГД",
    "αβγδεζΑΒΓΔ",
    "אבגדהוز حطيك",
    "€£¥©®™°±µ¶·×÷…–—‘’“”",
    "😀🚀🎉🔥💡",
)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "''s", "'x")


def varied(count=1000, seed=0):
    """Strings of words, digits, marks, scripts, contractions; some empty, some long."""
    rng = np.random.default_rng(seed)

    def piece():
        kind = rng.integers(5)
        if kind == 0:
            return str(rng.choice(CORPUS))
        if kind == 1:
            return "it" + str(rng.choice(CONTRACTIONS))
        if kind == 2:
            return str(rng.integers(10 ** rng.integers(1, 12)))
        letters = list(ALPHABETS[rng.integers(len(ALPHABETS))])
        return "".join(rng.choice(letters, rng.integers(1, 12)))

    texts = []
    for number in range(count):
        length = 0 if number % 100 == 0 else 200 if number % 101 == 0 else 8
        pieces = [piece() for _ in range(rng.integers(min(length, 2), length + 1))]
        glue = rng.choice(["", " ", "  ", "-"], len(pieces))
        texts.append("".join(a + str(b) for a, b in zip(pieces, glue, strict=True)))
    return texts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    return tokenizer.train(CORPUS, 580, directory), directory


@pytest.fixture(scope="module")
def merges(shared_data):
    return shared_data("clip_bpe", "bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="module")
def published(merges):
    return tokenizer.Tokenizer.from_merges(merges)


def reference(directory, fast=False):
    transformers = pytest.importorskip("transformers")
    name = "CLIPTokenizerFast" if fast else "CLIPTokenizer"
    return getattr(transformers, name).from_pretrained(directory)


def assert_same_ids(ours, theirs, texts):
    wanted = theirs(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    )["input_ids"]
    got = ours.encode(texts, 77, truncate=True)
    rows = zip(texts, got, wanted, strict=True)
    assert not [text for text, a, b in rows if (a != b).any()]


class TestEncode:
    def test_ids_are_start_words_end_padding(self, trained):
        ours, _ = trained
        ids = ours.encode(["a photo", "a photo of a bottle"], 12)
        assert ids.shape == (2, 12) and ids.dtype == np.int32
        all_words = ours.words(["a photo", "a photo of a bottle"])
        for row, words in zip(ids, all_words, strict=True):
            wanted = [ours.bos_id, *words, ours.eos_id]
            np.testing.assert_array_equal(row[: len(wanted)], wanted)
            assert (row[len(wanted) :] == ours.eos_id).all()

    def test_one_string_is_a_batch_of_one(self, trained):
        assert trained[0].encode("bottle", 7).shape == (1, 7)

    def test_case_and_white_space_do_not_matter(self, trained):
        ids = trained[0].encode(["A  Photo\n", "a photo"], 9)
        np.testing.assert_array_equal(*ids)

    def test_too_long_a_text_is_refused_unless_truncated(self, trained):
        ours, _ = trained
        text = "a photo of a bottle with a scratch."
        whole = ours.encode(text, 20)[0]
        with pytest.raises(ValueError, match="truncate=True"):
            ours.encode(text, 6)
        cut = ours.encode(text, 6, truncate=True)[0]
        np.testing.assert_array_equal(cut, [*whole[:5], ours.eos_id])
        exact = len(ours.words([text])[0]) + 2
        assert ours.encode(text, exact)[0, -1] == ours.eos_id  # fits to the token

    def test_length_without_room_for_the_ends_is_refused(self, trained):
        with pytest.raises(ValueError, match="length=1"):
            trained[0].encode("a", 1)

    def test_padding_id_is_read_from_the_directory(self, trained, tmp_path):
        shutil.copytree(trained[1], tmp_path, dirs_exist_ok=True)
        (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "!"}')
        padded = tokenizer.Tokenizer(tmp_path)
        assert padded.pad_id == 0 and (padded.encode("a", 8)[0, 3:] == 0).all()
        (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "[PAD]"}')
        with pytest.raises(ValueError, match=r"special_tokens_map.*\[PAD\]"):
            tokenizer.Tokenizer(tmp_path)


class TestTrain:
    def test_learned_merges_shorten_the_corpus(self, trained, tmp_path):
        ours, _ = trained
        assert ours.vocab_size == 580
        fewer = tokenizer.train(CORPUS, 530, tmp_path)
        lengths = [sum(map(len, t.words(CORPUS))) for t in (ours, fewer)]
        assert lengths[0] < 0.7 * lengths[1]

    def test_training_twice_gives_the_same_files(self, trained, tmp_path):
        tokenizer.train(CORPUS, 580, tmp_path)
        for name in ("vocab.json", "merges.txt"):
            assert (tmp_path / name).read_bytes() == (trained[1] / name).read_bytes()

    def test_ids_are_in_the_published_order(self, trained):
        ours, directory = trained
        vocab = json.loads((directory / "vocab.json").read_text())
        assert vocab["!"] == 0 and vocab["!</w>"] == 256
        assert (ours.bos_id, ours.eos_id) == (578, 579)

    def test_a_small_corpus_gives_a_smaller_vocabulary(self, tmp_path):
        ours = tokenizer.train(["ab ab"], 600, tmp_path)
        assert ours.vocab_size == 512 + 1 + 2

    def test_no_room_for_merges_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="vocab_size=514"):
            tokenizer.train(CORPUS, 514, tmp_path)

    def test_merges_alone_rebuild_the_tokenizer(self, trained, tmp_path):
        ours, directory = trained
        packed = tmp_path / "merges.gz"
        packed.write_bytes(gzip.compress((directory / "merges.txt").read_bytes()))
        for path in (packed, directory / "merges.txt"):
            other = tokenizer.Tokenizer.from_merges(path, num_merges=580 - 514)
            assert other.words(TEXTS) == ours.words(TEXTS)

    @pytest.mark.parametrize("fast", [False, True])
    def test_parity_with_transformers_on_the_written_directory(self, trained, fast):
        theirs = reference(trained[1], fast)
        assert len(theirs) == 580 and theirs.model_max_length == 77
        assert_same_ids(trained[0], theirs, TEXTS + FAST_ONLY * fast)

    def test_tokenizer_json_gives_the_same_ids(self, trained, tmp_path):
        theirs = reference(trained[1], fast=True)
        theirs.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
        other = tokenizer.Tokenizer(tmp_path)
        np.testing.assert_array_equal(
            other.encode(TEXTS, 77, truncate=True),
            trained[0].encode(TEXTS, 77, truncate=True),
        )


class TestPublished:
    def test_size_and_special_ids(self, published):
        assert published.vocab_size == 49408
        assert (published.bos_id, published.eos_id) == (49406, 49407)

    def test_known_sentence(self, published):
        # The example of the released CLIP code's documentation.
        ids = published.encode("a photo of a cat", 8)[0]
        np.testing.assert_array_equal(
            ids, [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
        )

    @pytest.mark.parametrize("fast", [False, True])
    def test_parity_with_transformers(self, published, merges, tmp_path, fast):
        with gzip.open(merges, "rt", encoding="utf-8") as file:
            lines = [next(file) for _ in range(1 + tokenizer.CLIP_NUM_MERGES)]
        lines[0] = "#version: 0.2\n"  # the header transformers 5 knows
        (tmp_path / "merges.txt").write_text("".join(lines), encoding="utf-8")
        vocab = published._backend.get_vocab()
        (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        assert_same_ids(published, reference(tmp_path, fast), TEXTS + FAST_ONLY * fast)
        np.testing.assert_array_equal(
            tokenizer.Tokenizer(tmp_path).encode(TEXTS, 77, truncate=True),
            published.encode(TEXTS, 77, truncate=True),
        )


def test_a_thousand_varied_strings_have_the_ids_of_transformers(
    published, merges, tmp_path
):
    """Through all three kinds of file; the reference reads the same directory."""
    texts = varied()
    assert len(set(texts)) > 950 and "" in texts
    assert max(map(len, texts)) > 500
    with gzip.open(merges, "rt", encoding="utf-8") as file:
        lines = [next(file) for _ in range(1 + tokenizer.CLIP_NUM_MERGES)]
    lines[0] = "#version: 0.2\n"  # the header transformers 5 knows
    (tmp_path / "merges.txt").write_text("".join(lines), encoding="utf-8")
    vocab = json.dumps(published._backend.get_vocab())
    (tmp_path / "vocab.json").write_text(vocab, encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        special = {"pad_token": tokenizer.EOS, "unk_token": tokenizer.EOS}
        (tmp_path / name).write_text(json.dumps(special))
    theirs = reference(tmp_path, fast=True)
    for ours in (published, tokenizer.Tokenizer(tmp_path)):
        assert_same_ids(ours, theirs, texts)
    slow = reference(tmp_path)
    if type(slow) is not type(theirs):  # transformers 5 has one class for both
        assert_same_ids(published, slow, texts)
    (tmp_path / "json").mkdir()
    theirs.backend_tokenizer.save(str(tmp_path / "json" / "tokenizer.json"))
    assert_same_ids(tokenizer.Tokenizer(tmp_path / "json"), theirs, texts)


class TestBadFiles:
    def test_missing_files_are_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"wanted vocab\.json and merges\.txt"):
            tokenizer.Tokenizer(tmp_path)

    def copy(self, trained, tmp_path, change):
        shutil.copytree(trained[1], tmp_path, dirs_exist_ok=True)
        vocab = json.loads((tmp_path / "vocab.json").read_text())
        (tmp_path / "vocab.json").write_text(json.dumps(change(vocab)))
        return tmp_path

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda v: {k: i for k, i in v.items() if i != 512},
                r"merges\.txt merges .* vocab\.json beside it lacks",
            ),
            (lambda vocab: [], "no dict"),
            (
                lambda v: {k: i for k, i in v.items() if k != tokenizer.EOS},
                r"vocab\.json lacks \['<\|endoftext\|>'\]",
            ),
            (
                lambda v: {k: i + (i > 9) for k, i in v.items()},
                r"vocab\.json holds 580",
            ),
        ],
    )
    def test_a_vocabulary_that_does_not_fit_is_refused(
        self, trained, tmp_path, change, message
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.Tokenizer(self.copy(trained, tmp_path, change))

    def test_a_two_token_vocabulary_is_refused(self, tmp_path):
        (tmp_path / "vocab.json").write_text(
            json.dumps({tokenizer.BOS: 0, tokenizer.EOS: 1})
        )
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        with pytest.raises(ValueError, match=r"vocab\.json holds 2 tokens"):
            tokenizer.Tokenizer(tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("a b\n", "wanted a version line"),
            ("#version: 0.2\na b c\n", "line 2: wanted two tokens"),
            ("#version: 0.2\na b\n", "holds 1 merges, fewer than num_merges=48894"),
        ],
    )
    def test_merges_that_are_none_are_refused(self, tmp_path, text, message):
        path = tmp_path / "merges.txt"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            tokenizer.Tokenizer.from_merges(path)

    def test_a_damaged_json_file_is_named(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
            tokenizer.Tokenizer(tmp_path)
