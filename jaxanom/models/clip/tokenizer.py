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
    """Text to token ids and back.

    Attributes:
      vocab_size: number of ids.
      bos_id, eos_id, pad_id: start, end and padding.
    """

    def __init__(self, directory: str | Path, pad_id: int | None = None):
        """Reads `vocab.json` and `merges.txt`, else `tokenizer.json`, of a directory.

        Args:
          directory: as transformers' CLIPTokenizer saves it.
          pad_id: None is the pad token that `special_tokens_map.json` or
            `tokenizer_config.json` names, and the end token where none does.

        Raises:
          UserError: files are missing, damaged, or not a CLIP vocabulary.
          ImportError: the package `tokenizers` is not installed.
        """
        directory = Path(directory)
        if (directory / _VOCAB).is_file() and (directory / _MERGES).is_file():
            source = directory / _VOCAB
            vocab = _read_vocab(source)
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
        if pad_id is None:
            pad_id = _saved_pad_id(directory, backend)
        self._adopt(backend, source, pad_id)

    @classmethod
    def from_merges(
        cls,
        path: str | Path,
        num_merges: int = CLIP_NUM_MERGES,
        pad_id: int | None = None,
    ) -> "Tokenizer":
        """Builds the vocabulary from a merges file alone, `.gz` or plain.

        Ids are given in CLIP's order: bytes, bytes that end a word, merges, start, end.

        Args:
          path: a version line, then one merge a line.
          num_merges: merges to use, from the top.
          pad_id: None is the end token.

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
        made = cls.__new__(cls)
        made._adopt(_assemble(vocab, merges[:num_merges]), path, pad_id)
        return made

    def encode(
        self, texts: str | Sequence[str], length: int, truncate: bool = False
    ) -> np.ndarray:
        """Returns ids [N, length] int32: start, text, end, padding.

        Args:
          texts: N strings; one string is a batch of one.
          length: columns, `max_position_embeddings` of the tower or fewer.
          truncate: cut long texts (the end token stays) instead of raising.

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

    def decode(self, ids: np.ndarray) -> list[str]:
        """Returns the texts of ids [N, L], up to the first end token; lower case."""
        texts = []
        for row in np.atleast_2d(np.asarray(ids)).tolist():
            row = row[: row.index(self.eos_id)] if self.eos_id in row else row
            text = self._backend.decode(row, skip_special_tokens=True)
            texts.append(text.replace(_SUFFIX, " ").strip())
        return texts

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
        if not 0 <= self.pad_id < self.vocab_size:
            raise UserError(
                f"pad_id={pad_id} is outside {source}, 0 to {self.vocab_size - 1}"
            )


def train(texts: Iterable[str], vocab_size: int, directory: str | Path) -> Tokenizer:
    """Learns merges from texts and writes a directory that transformers reads too.

    Args:
      texts: the corpus.
      vocab_size: most ids wanted; 512 bytes and 2 special tokens are always there, and
        a small corpus runs out of pairs earlier.
      directory: receives `vocab.json`, `merges.txt`, `tokenizer_config.json` and
        `special_tokens_map.json`.

    Raises:
      UserError: `vocab_size` leaves no room for merges.
    """
    num_merges = vocab_size - _NUM_BASE - 2
    if num_merges < 1:
        raise UserError(f"vocab_size={vocab_size}; wanted more than {_NUM_BASE + 2}")
    library = _library()
    backend = _assemble({}, [])
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=_SUFFIX,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str())["model"]["merges"]
    merges = [tuple(pair) for pair in learned[:num_merges]]
    directory = Path(directory)
    _write(directory, _vocabulary(merges), merges)
    return Tokenizer(directory)


def _write(
    directory: Path, vocab: dict[str, int], merges: Sequence[tuple[str, str]]
) -> None:
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
    record.write_json(directory / _VOCAB, vocab)
    record.write_json(directory / _CONFIG, config)
    record.write_json(directory / _SPECIAL, special)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "text towers need the package `tokenizers`; pip install jaxanom, or "
            "pip install tokenizers"
        ) from error
    return tokenizers


def _assemble(vocab: dict[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """Builds the library's pipeline: normalise, cut into words, merge bytes."""
    library = _library()
    split, normalizers = library.pre_tokenizers, library.normalizers
    backend = library.Tokenizer(
        library.models.BPE(
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
            normalizers.Replace(library.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = split.Split(library.Regex(_WORDS), behavior="removed", invert=True)
    backend.pre_tokenizer = split.Sequence(
        [words, split.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = library.decoders.ByteLevel()
    if vocab:
        backend.add_special_tokens([BOS, EOS])
    return backend


def _load_json(path: Path) -> Any:
    try:
        backend = _library().Tokenizer.from_file(str(path))
    except ImportError:
        raise
    except Exception as error:  # The library raises bare Exception on a bad file.
        raise UserError(f"{path} is not a tokenizer file: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _vocabulary(merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Numbers tokens in CLIP's order; two merges may make one token."""
    alphabet = _byte_names()
    ended = [name + _SUFFIX for name in alphabet]
    joined = ["".join(pair) for pair in merges]
    tokens = dict.fromkeys([*alphabet, *ended, *joined, BOS, EOS])
    return {token: i for i, token in enumerate(tokens)}


def _byte_names() -> list[str]:
    """Returns printable characters for 256 bytes, in the order CLIP numbers them.

    Bytes that print in Latin-1 stand for themselves and come first; the others, in
    order, are named by the characters from 256 on.
    """
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in [*printing, *range(256, 512 - len(printing))]]


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = record.read_json(path)
    if not isinstance(vocab, dict):
        raise UserError(f"{path} holds no dict of token -> id")
    return vocab


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
            found = backend.token_to_id(token)
            if found is None:
                raise UserError(f"{path} pads with {token!r}, not in the vocabulary")
            return found
    return None
