"""Labelled text without a network: docstrings of the installed packages, and the user's own files."""

import ast
import csv
import importlib.util
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from numpy.typing import NDArray

from t3vis.errors import ConfigurationError

# All of them come with t3vis (sympy and networkx through torch, pandas through datasets), and each has a subject
# of its own: scipy beside sklearn, or transformers beside torch, would be hard to tell apart.
DEFAULT_PACKAGES = ("huggingface_hub", "networkx", "pandas", "sklearn", "sympy", "torch")

_MIN_WORDS = 12  # shorter ones, such as "Return a new copy of this.", could stand in any package
_MAX_WORDS = 60

# Tests document little, and vendored copies belong to a package other than the one they lie in.
_FOREIGN_FOLDERS = frozenset(
    {"tests", "test", "testing", "_vendor", "_external", "externals", "array_api_compat", "array_api_extra"}
)

_UNDERLINE = re.compile(r"([-=~^*#])\1{2,}\s*$")
_END_OF_PROSE = re.compile(
    r">>>|```|:\w+[^:]*:(\s|$)|\w+ \([^)]*\):"
    r"|(args|arguments|parameters|params|inputs?|outputs?|returns?|yields?|raises|attributes|examples?|notes?|usage"
    r"|see also|references|warnings?|shape|keyword arguments|keyword args|explanation)\s*:{1,2}\s*$",
    re.IGNORECASE,
)
_ROLE = re.compile(r":[\w:]+:`~?\.?([^`<]+?)(?:\s*<[^>]*>)?`_*")
_URL = re.compile(r"<?https?://\S+")
_REFERENCE = re.compile(r"\[`~?\.?([^`\]]+)`\]")
_MARKUP = re.compile(r"[`*|\\]+")

_LABEL_NAMES = ("label", "labels", "category", "class", "intent", "target")
_TEXT_NAMES = (
    ("text",),
    ("sentence",),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)


def docstring_corpus(
    packages: Sequence[str] = DEFAULT_PACKAGES, *, max_per_package: int = 1500, seed: int = 0
) -> Dataset:
    """Docstrings of installed packages, each labelled with the package that it comes from.

    The packages are found and read as source files, never imported. The same versions of the packages and the
    same arguments give the same dataset, row for row.

    Parameters
    ----------
    packages
        Names as they are imported (``sklearn``, not ``scikit-learn``), at least two.
    max_per_package
        At most this many examples of one class; a package with fewer docstrings gives all it has.
    seed
        Chooses the files that are read and the order of the rows.

    Returns
    -------
    Columns ``text`` (12 to 60 words of prose), ``label`` (a ``ClassLabel`` named by the packages) and ``source``
    (the qualified name of what is documented), the classes mixed. No two texts agree in their words; one that
    occurs in several packages is left out, as its label would be ambiguous.

    Raises
    ------
    ConfigurationError
        If a package is not installed, has no Python source or no prose in it, or fewer than two are named.
    """
    if len(set(packages)) < 2 or len(set(packages)) < len(packages):
        raise ConfigurationError(f"a corpus needs two or more different packages; got {list(packages)}.")
    # Some more than wanted, since those shared between packages are yet to be dropped.
    n_read = max_per_package + max_per_package // 10
    texts = {name: _first_texts(name, seed, n_read) for name in packages}
    n_packages_with = Counter(key for found in texts.values() for key in found)
    rows: list[dict[str, Any]] = [
        {"text": text, "label": label, "source": source}
        for label, name in enumerate(packages)
        for text, source in islice(
            (row for key, row in texts[name].items() if n_packages_with[key] == 1), max_per_package
        )
    ]
    without = set(packages) - {packages[row["label"]] for row in rows}
    if without:
        raise ConfigurationError(f"no prose in the docstrings of {sorted(without)}; name other packages.")
    order = np.random.default_rng(seed).permutation(len(rows))
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(packages)), "source": Value("string")})
    return Dataset.from_list([rows[i] for i in order], features=features)


def prose(docstring: str) -> str:
    r"""Return the readable beginning of a docstring: sections, code and markup gone, 60 words at most.

    Parameters
    ----------
    docstring
        Without common indentation, as ``inspect.cleandoc`` leaves it.

    Returns
    -------
    One line of text; empty if fewer than twelve words remain.

    Examples
    --------
    >>> prose("Compute the *mean* of all `x` along :ref:`an axis <axes>`.\n\nUsed by `y`.\n\nNotes\n-----\nNone.")
    'Compute the mean of all x along an axis. Used by y.'
    """
    text = " ".join(_prose_lines(docstring))
    for pattern, replacement in ((_URL, ""), (_ROLE, r"\1"), (_REFERENCE, r"\1"), (_MARKUP, "")):
        text = pattern.sub(replacement, text)
    words = text.split()
    if sum(any(map(str.isalpha, word)) for word in words) < _MIN_WORDS:
        return ""
    return " ".join(words[:_MAX_WORDS])


def normalized(text: str) -> str:
    """Return the words of a text in lower case: what two texts must share to count as duplicates."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def plant_wrong_labels(
    dataset: Dataset, *, fraction: float = 0.05, seed: int = 0, column: str = "label"
) -> tuple[Dataset, NDArray[np.int64]]:
    """Give a known share of the examples a wrong label, drawn uniformly from the other classes.

    Parameters
    ----------
    dataset
        With a ``ClassLabel`` column of two or more classes.
    fraction
        Share of the examples, in [0, 1]; exactly ``round(fraction * len(dataset))`` labels change.
    seed
        Chooses the examples and their new labels.
    column
        Name of the label column.

    Returns
    -------
    The dataset with its wrong labels, and the example ids of those, sorted.

    Raises
    ------
    ConfigurationError
        If `fraction` is out of range or the column has fewer than two classes.
    """
    if not 0 <= fraction <= 1:
        raise ConfigurationError(f"fraction is a share of the examples, in [0, 1]; got {fraction}.")
    feature = dataset.features.get(column)
    if not isinstance(feature, ClassLabel) or feature.num_classes < 2:
        raise ConfigurationError(f"column {column!r} must be a ClassLabel of at least 2 classes; it is {feature}.")
    rng = np.random.default_rng(seed)
    labels = np.asarray(dataset[column], dtype=np.int64)
    example_ids = np.sort(rng.choice(len(labels), size=round(fraction * len(labels)), replace=False))
    shift = rng.integers(1, feature.num_classes, size=len(example_ids))
    labels[example_ids] = (labels[example_ids] + shift) % feature.num_classes
    return Dataset.from_dict(dataset[:] | {column: labels}, features=dataset.features), example_ids


def read_dataset(
    name_or_path: str | Path,
    *,
    split: str = "train",
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
) -> Dataset:
    """Read a labelled text dataset from a file, or from the hub by its name.

    Parameters
    ----------
    name_or_path
        A ``.csv`` or ``.tsv`` file whose first line names the columns (quotation marks in a ``.tsv`` are text), a
        ``.jsonl`` file of one object per line, a ``.json`` file with a list of objects; otherwise the first argument
        of ``datasets.load_dataset``.
    split
        Which split of a dataset from the hub; a file is read whole.
    text_columns
        One column of text, or two for sentence pairs. By default the columns that usually hold the text, or else
        the only column of strings that is not the label.
    label_column
        By default the only ``ClassLabel`` column, or else the one with a usual name, such as ``label``.

    Returns
    -------
    Columns ``text``, ``text_pair`` if there are two texts, and ``label``, a ``ClassLabel``; the rows in their
    order. Classes that had no names are called by their values, in ascending order.

    Raises
    ------
    ConfigurationError
        If the file or dataset cannot be read, the columns cannot be told, or a row lacks its text or label.
    """
    dataset = _load(name_or_path, split)
    label = label_column or _label_column(dataset, exclude=text_columns or ())
    texts = tuple(text_columns or _text_columns(dataset, exclude=label))
    for column in (*texts, label):
        if column not in dataset.features:
            raise ConfigurationError(f"{name_or_path} has no column {column!r}. {_found(dataset)}")
    if len(texts) > 2 or label in texts:
        raise ConfigurationError(
            f"expected one or two text columns and a label apart from them; got {texts}, {label!r}."
        )
    columns: dict[str, list[Any]] = dict(zip(("text", "text_pair"), map(dataset.__getitem__, texts), strict=False))
    columns = {name: list(values) for name, values in columns.items()}
    for column, values in zip(texts, columns.values(), strict=True):
        _check_rows(column, values, [isinstance(value, str) for value in values], "a text")
    columns["label"], classes = _class_labels(dataset, label)
    return Dataset.from_dict(
        columns, features=Features({name: Value("string") for name in columns} | {"label": classes})
    )


@cache
def _first_texts(package: str, seed: int, n_texts: int) -> Mapping[str, tuple[str, str]]:
    """The first of `_distinct_texts`; parsing a package takes seconds."""
    return dict(islice(_distinct_texts(package, seed), n_texts))


def _distinct_texts(package: str, seed: int) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (normalized text, (text, qualified name)), the files of the package in an order that `seed` chooses."""
    root = _source_folder(package)
    files = [path for path in sorted(root.rglob("*.py")) if _FOREIGN_FOLDERS.isdisjoint(path.relative_to(root).parts)]
    seen = set()
    for i in np.random.default_rng(seed).permutation(len(files)):
        for source, docstring in _docstrings(files[i], root):
            text = prose(docstring)
            key = normalized(text)
            if text and key not in seen:
                seen.add(key)
                yield key, (text, source)


def _source_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None:
        raise ConfigurationError(
            f"package {package!r} is not installed; install it or name other packages (as they are imported)."
        )
    if not spec.submodule_search_locations:
        raise ConfigurationError(f"{package!r} is a single module, not a package; name other packages.")
    return Path(spec.submodule_search_locations[0])


def _docstrings(path: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of a source file, and of the classes and functions in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # a template, or written for another Python
            return
    module = (root.name, *path.relative_to(root).with_suffix("").parts)
    yield from _documented(tree, ".".join(module).removesuffix(".__init__"))


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield name, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler):
            yield from _documented(child, name)


def _prose_lines(docstring: str) -> Iterator[str]:
    """Yield the lines before the first section, field or example, without indented blocks and directives."""
    lines = [*docstring.splitlines(), ""]
    for number, (line, following) in enumerate(pairwise(lines)):
        is_heading = bool(line.strip()) and _UNDERLINE.match(following)
        if _END_OF_PROSE.match(line) or (number > 0 and is_heading and not _UNDERLINE.match(line)):
            return
        if not (line.startswith((" ", "\t", "..")) or _UNDERLINE.match(line)):
            yield line


def _load(name_or_path: str | Path, split: str) -> Dataset:
    path = Path(name_or_path)
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json}
    reader = readers.get(path.suffix)
    try:
        if reader is None:
            return load_dataset(str(name_or_path), split=split)
        dataset = Dataset.from_list(reader(path))
    except (OSError, ValueError) as error:  # the second is also what JSON, Arrow and Unicode raise
        raise ConfigurationError(f"cannot read {name_or_path}: {error}") from error
    if len(dataset) == 0:
        raise ConfigurationError(f"{name_or_path} has no rows.")
    return dataset


def _read_csv(path: Path) -> list[dict[str, Any]]:
    # Neither pandas nor datasets' own reader: both turn texts such as "null" and "NA" into missing values.
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".tsv":
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.DictReader(file, strict=True)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                n_fields = len(reader.fieldnames or ())
                raise ValueError(f"line {reader.line_num} does not have the {n_fields} fields of the header.")
            rows.append(row)
    return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return _objects(json.loads(line) for line in file if line.strip())


def _read_json(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"expected a list of objects, one for each example; found one {type(rows).__name__}.")
    return _objects(rows)


def _objects(rows: Iterable[Any]) -> list[dict[str, Any]]:
    rows = list(rows)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"example {number} is no object with named columns but {row!r}.")
    return rows


def _label_column(dataset: Dataset, exclude: Sequence[str]) -> str:
    candidates = [name for name in dataset.column_names if name not in exclude]
    with_classes = [name for name in candidates if isinstance(dataset.features[name], ClassLabel)]
    if len(with_classes) == 1:
        return str(with_classes[0])
    for wanted in _LABEL_NAMES:
        for name in candidates:
            if name.lower() == wanted:
                return str(name)
    raise ConfigurationError(f"cannot tell which column is the label. {_found(dataset)}")


def _text_columns(dataset: Dataset, exclude: str) -> Sequence[str]:
    strings = [
        name
        for name, feature in dataset.features.items()
        if name != exclude and getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    for usual in _TEXT_NAMES:
        if set(usual) <= set(strings):
            return usual
    if len(strings) == 1:
        return strings
    raise ConfigurationError(f"cannot tell which columns hold the text. {_found(dataset)}")


def _class_labels(dataset: Dataset, column: str) -> tuple[list[int], ClassLabel]:
    values = list(dataset[column])
    feature = dataset.features[column]
    if isinstance(feature, ClassLabel):
        _check_rows(column, values, [value is not None and value >= 0 for value in values], "a label")
        return values, feature
    _check_rows(
        column,
        values,
        [isinstance(value, int | str) and value != "" for value in values],
        "a class name or number",
    )
    distinct = set(values)
    if len(distinct) < 2:
        raise ConfigurationError(f"column {column!r} has one class only, {values[0]!r}; expected at least 2.")
    names = [str(value) for value in sorted(distinct, key=_natural)]
    class_label = ClassLabel(names=names)
    return [names.index(str(value)) for value in values], class_label


def _natural(value: int | str) -> tuple[bool, int, str]:
    """Sort "10" behind "9": labels from a CSV file are strings even when they are numbers."""
    is_number = isinstance(value, int) or re.fullmatch(r"-?\d+", value) is not None
    return not is_number, int(value) if is_number else 0, str(value)


def _check_rows(column: str, values: Sequence[Any], is_valid: Sequence[bool], expected: str) -> None:
    wrong = [i for i, valid in enumerate(is_valid) if not valid]
    if wrong:
        raise ConfigurationError(
            f"column {column!r} should hold {expected} in every row; {len(wrong)} of {len(values)} rows do not, "
            f"the first is row {wrong[0]}: {values[wrong[0]]!r}."
        )


def _found(dataset: Dataset) -> str:
    columns = ", ".join(f"{name} ({getattr(f, 'dtype', f)})" for name, f in dataset.features.items())
    return f"It has the columns: {columns}. Name them with text_columns=[...] and label_column=...."
