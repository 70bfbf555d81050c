"""What is told apart, in which words: class names, and which columns an image has."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxanom.errors import UserError
from jaxanom.models.clip import prompts


class Classes(NamedTuple):
    """The classes of a task.

    Attributes:
      names: K class names, in words.
      columns: [num_categories, T] int32: target t of category c is class columns[c, t].
      targets: names of the T targets.
    """

    names: tuple[str, ...]
    columns: np.ndarray
    targets: tuple[str, ...]


def make(
    task: str,
    categories: Sequence[str],
    defect_types: Sequence[str],
    good_name: str,
    bad_name: str,
    defect_name: str,
) -> Classes:
    """Names the classes of a task.

    "category" tells categories apart, all K of them for every image; "state" normal
    from anomalous; "defect" the defect types, good among them. The last two know the
    category of an image and compare it with that category's sentences only.

    Args:
      task: "category", "defect" or "state".
      categories, defect_types: What the dataset knows; the first defect type is "good".
      good_name, bad_name: Words for a state, with a place {category}.
      defect_name: Words for a defect, with places {category} and {defect}.

    Raises:
      UserError: A name with another place.
    """
    words = [_words(category) for category in categories]
    if task == "category":
        names = tuple(words)
        columns = np.tile(np.arange(len(names)), (len(names), 1))
        return Classes(names, columns.astype(np.int32), tuple(categories))
    kinds = tuple(defect_types) if task == "defect" else ("good", "anomalous")
    rows = []
    for category in words:
        row = [_fill("good_name", good_name, category=category)]
        if task == "state":
            row.append(_fill("bad_name", bad_name, category=category))
        else:
            row += [
                _fill("defect_name", defect_name, category=category, defect=_words(k))
                for k in kinds[1:]
            ]
        rows.append(row)
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    columns = np.array([[names.index(name) for name in row] for row in rows], np.int32)
    return Classes(names, columns, kinds)


def layout(
    classes: Classes, template: str, num_vectors: int, tokenizer: Any, length: int
) -> prompts.Layout:
    """Tokenizes one sentence per class.

    Args:
      classes: Their names are read.
      template: Holds `{vectors}` and `{name}`, see `prompts.parse`.
      num_vectors: N.
      tokenizer: The text tower's.
      length: Columns, the longest the tower takes.

    Raises:
      UserError: A sentence that is too long; names the keys to change.
    """
    parsed = prompts.parse(template, num_vectors, tokenizer.words)
    names = tokenizer.words(classes.names)
    longest = max(range(len(names)), key=lambda number: len(names[number]))
    needed = 2 + len(names[longest]) + sum(piece != prompts.NAME for piece in parsed)
    if needed > length:
        raise UserError(
            f"class {classes.names[longest]!r} takes {needed} tokens with "
            f"config.app.num_vectors={num_vectors} and config.app.template="
            f"{template!r}; the text tower takes {length}"
        )
    return prompts.make_layout(parsed, names, tokenizer, num_vectors, length)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _fill(key: str, template: str, **names: str) -> str:
    try:
        return template.format(**names)
    except (KeyError, IndexError, ValueError) as error:
        fields = " and ".join(f"{{{name}}}" for name in names)
        raise UserError(
            f"config.app.{key}={template!r}: the places it may hold are {fields}"
        ) from error
