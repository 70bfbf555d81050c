"""CLIP's byte-pair tokenizer over local vocabulary files.

Text is NFC-normalised, white space collapsed, lower-cased and cut into words; each word
becomes the bytes' printable names, the last with the suffix `</w>`, and pairs merge in
the order of the merges file (Sennrich et al., arXiv 1508.07909).
"""

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxanom import record
from jaxanom.errors import UserError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CLIP_NUM_MERGES = 48_894
"""Merges that released CLIP towers use, of the 262,144 in the published file."""

_SUFFIX = "</w>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_NUM_BASE = 2 * 256
_VOCAB, _MERGES, _JSON = "vocab.json", "merges.txt", "tokenizer.json"
_CONFIG, _SPECIAL = "tokenizer_config.json", "special_tokens_map.json"


class Tokenizer:
    """Text to token ids.

    Attributes:
      vocab_size: Number of ids.
      bos_id, eos_id, pad_id: Start, end and padding.
    """

    def __init__(self, directory: str | Path):
        """Reads `vocab.json` and `merges.txt`, else `tokenizer.json`, of a directory.

        Args:
          directory: As transformers' CLIPTokenizer saves it. Padding is the pad token
            that `special_tokens_map.json` or `tokenizer_config.json` names, and the end
            token where none does.

        Raises:
          UserError: files are missing, damaged, or not a CLIP vocabulary.
        """
        directory = Path(directory)
        if (directory / _VOCAB).is_file() and (directory / _MERGES).is_file():
            source = directory / _VOCAB
            vocab = record.read_json(source)
            if not isinstance(vocab, dict):
                raise UserError(f"{source} holds no dict of token -> id")
            merges = _read_merges(directory / _MERGES)
            _check_special(vocab, source)
            _check_merges(vocab, merges, directory / _MERGES)
            backend = _assemble(vocab, merges)
        elif (directory / _JSON).is_file():
            source = directory / _JSON
            backend = _load_json(source)
            _check_special(backend.get_vocab(), source)
        else:
            raise UserError(
                f"{directory} holds no tokenizer; wanted {_VOCAB} and {_MERGES}, or "
                f"{_JSON}"
            )
        self._adopt(backend, source, _saved_pad_id(directory, backend))

    @classmethod
    def from_merges(
        cls, path: str | Path, num_merges: int = CLIP_NUM_MERGES
    ) -> "Tokenizer":
        """Builds the vocabulary from a merges file alone, `.gz` or plain.

        Ids are given in CLIP's order: bytes, bytes that end a word, merges, start, end.
        Padding is the end token.

        Args:
          path: A version line, then one merge a line.
          num_merges: Merges to use, from the top.

        Raises:
          UserError: the file holds fewer merges.
        """
        path = Path(path)
        merges = _read_merges(path)
        if len(merges) < num_merges:
            raise UserError(
                f"{path} holds {len(merges)} merges, fewer than num_merges={num_merges}"
            )
        vocab = _vocabulary(merges[:num_merges])
        tokenizer = cls.__new__(cls)
        tokenizer._adopt(_assemble(vocab, merges[:num_merges]), path, None)
        return tokenizer

    def encode(
        self, texts: str | Sequence[str], length: int, truncate: bool = False
    ) -> np.ndarray:
        """Returns ids [N, length] int32: start, text, end, padding.

        Args:
          texts: N strings; one string is a batch of one.
          length: Columns, `max_position_embeddings` of the tower or fewer.
          truncate: Cut long texts (the end token stays) instead of raising.

        Raises:
          UserError: a text does not fit and `truncate` is False.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if length < 2:
            raise UserError(f"length={length}; start and end alone need 2")
        ids = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text, words in zip(ids, texts, self.words(texts), strict=True):
            if len(words) + 2 > length and not truncate:
                raise UserError(
                    f"{text[:80]!r} takes {len(words) + 2} tokens with start and end, "
                    f"length={length}; shorten it or pass truncate=True"
                )
            whole = [self.bos_id, *words[: length - 2], self.eos_id]
            row[: len(whole)] = whole
        return ids

    def words(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of each text, without start, end or padding."""
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def _adopt(self, backend: Any, source: Path, pad_id: int | None) -> None:
        ids = sorted(backend.get_vocab().values())
        if len(ids) < _NUM_BASE + 2 or ids != list(range(len(ids))):
            raise UserError(
                f"{source} holds {len(ids)} tokens with ids {ids[0] if ids else 0} to "
                f"{ids[-1] if ids else 0}; wanted ids 0, 1, 2, ... of at least "
                f"{_NUM_BASE} bytes and 2 special tokens"
            )
        self._backend = backend
        self.vocab_size = len(ids)
        self.bos_id, self.eos_id = backend.token_to_id(BOS), backend.token_to_id(EOS)
        self.pad_id = self.eos_id if pad_id is None else pad_id


def train(texts: Iterable[str], vocab_size: int, directory: str | Path) -> Tokenizer:
    """Learns merges from texts and writes a directory that transformers reads too.

    Args:
      texts: The corpus.
      vocab_size: Most ids wanted; 512 bytes and 2 special tokens are always there, and
        a small corpus runs out of pairs earlier.
      directory: Receives `vocab.json`, `merges.txt`, `tokenizer_config.json` and
        `special_tokens_map.json`.

    Raises:
      UserError: `vocab_size` leaves no room for merges.
    """
    import tokenizers

    num_merges = vocab_size - _NUM_BASE - 2
    if num_merges < 1:
        raise UserError(f"vocab_size={vocab_size}; wanted more than {_NUM_BASE + 2}")
    backend = _assemble({}, [])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=_SUFFIX,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str())["model"]["merges"]
    merges = [tuple(pair) for pair in learned[:num_merges]]
    directory = Path(directory)
    special = dict(bos_token=BOS, eos_token=EOS, unk_token=EOS, pad_token=EOS)
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        **special,
    }
    directory.mkdir(parents=True, exist_ok=True)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (directory / _MERGES).write_text("\n".join(lines), encoding="utf-8")
    record.write_json(directory / _VOCAB, _vocabulary(merges))
    record.write_json(directory / _CONFIG, config)
    record.write_json(directory / _SPECIAL, special)
    return Tokenizer(directory)


def _assemble(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """Builds the library's pipeline: normalise, cut into words, merge bytes."""
    import tokenizers

    split, normalizers = tokenizers.pre_tokenizers, tokenizers.normalizers
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab,
            merges=list(merges),
            unk_token=EOS,
            continuing_subword_prefix="",
            end_of_word_suffix=_SUFFIX,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = split.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = split.Sequence(
        [words, split.ByteLevel(add_prefix_space=False)]
    )
    if vocab:
        backend.add_special_tokens([BOS, EOS])
    return backend


def _load_json(path: Path) -> Any:
    import tokenizers

    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare Exception on a bad file.
        raise UserError(f"{path} is not a tokenizer file: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Numbers tokens in CLIP's order; two merges may make one token."""
    # Bytes that print in Latin-1 stand for themselves and come first; the others, in
    # order, are named by the characters from 256 on.
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in [*printing, *range(256, 512 - len(printing))]]
    ended = [name + _SUFFIX for name in alphabet]
    joined = ["".join(pair) for pair in merges]
    tokens = dict.fromkeys([*alphabet, *ended, *joined, BOS, EOS])
    return {token: i for i, token in enumerate(tokens)}


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as merges: {error}") from error
    if "version" not in lines[0]:
        raise UserError(f"{path} starts with {lines[0][:40]!r}; wanted a version line")
    pairs = [tuple(line.split()) for line in lines[1:] if line]
    for number, pair in enumerate(pairs, start=2):
        if len(pair) != 2:
            raise UserError(f"{path} line {number}: wanted two tokens, got {pair}")
    return pairs


def _check_special(vocab: dict[str, int], path: Path) -> None:
    missing = [name for name in (BOS, EOS) if name not in vocab]
    if missing:
        raise UserError(f"{path} lacks {missing}; it is not CLIP's vocabulary")


def _check_merges(
    vocab: dict[str, int], merges: Sequence[tuple[str, str]], path: Path
) -> None:
    for pair in merges:
        lost = [token for token in (*pair, "".join(pair)) if token not in vocab]
        if lost:
            raise UserError(
                f"{path} merges {pair}, but {_VOCAB} beside it lacks {lost[0]!r}; the "
                "two files belong to different tokenizers"
            )


def _saved_pad_id(directory: Path, backend: Any) -> int | None:
    for name in (_SPECIAL, _CONFIG):
        path = directory / name
        token = record.read_json(path).get("pad_token") if path.is_file() else None
        token = token["content"] if isinstance(token, dict) else token
        if token is not None:
            pad_id = backend.token_to_id(token)
            if pad_id is None:
                raise UserError(f"{path} pads with {token!r}, not in the vocabulary")
            return pad_id
    return None
