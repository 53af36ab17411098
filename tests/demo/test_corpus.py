"""The docstring corpus, the planted labels and the user's own files."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from t3vis.demo.corpus import (
    DEFAULT_PACKAGES,
    docstring_corpus,
    normalized,
    plant_wrong_labels,
    prose,
    read_dataset,
)
from t3vis.errors import ConfigurationError

SMALL = ("numpy", "networkx", "sklearn")


@pytest.fixture(scope="module")
def corpus() -> Dataset:
    return docstring_corpus()


def labelled(n_examples: int, n_classes: int) -> Dataset:
    names = [f"class{i}" for i in range(n_classes)]
    return Dataset.from_dict(
        {"label": [i % n_classes for i in range(n_examples)], "text": [f"text {i}" for i in range(n_examples)]},
        features=Features({"label": ClassLabel(names=names), "text": Value("string")}),
    )


class TestDocstringCorpus:
    def test_thousands_of_examples_and_no_rare_class(self, corpus: Dataset) -> None:
        counts = np.bincount(corpus["label"], minlength=len(DEFAULT_PACKAGES))
        assert corpus.features["label"].names == list(DEFAULT_PACKAGES)
        assert len(DEFAULT_PACKAGES) >= 6
        assert counts.sum() >= 4000
        assert counts.max() <= 1500
        assert counts.min() > 0.4 * counts.max()

    def test_no_two_texts_share_their_words(self, corpus: Dataset) -> None:
        keys = [normalized(text) for text in corpus["text"]]
        assert len(set(keys)) == len(keys)

    def test_texts_are_readable_and_bounded(self, corpus: Dataset) -> None:
        n_words = np.array([len(text.split()) for text in corpus["text"]])
        assert n_words.min() >= 12
        assert n_words.max() <= 60
        assert not any(mark in text for text in corpus["text"] for mark in ("`", ">>>", "Parameters ---", "\n"))

    def test_sources_lie_in_the_package_that_labels_them(self, corpus: Dataset) -> None:
        names = corpus.features["label"].names
        assert all(
            source.split(".")[0] == names[label]
            for source, label in zip(corpus["source"], corpus["label"], strict=True)
        )

    def test_classes_are_mixed(self, corpus: Dataset) -> None:
        assert len(set(corpus["label"][:60])) == len(DEFAULT_PACKAGES)

    def test_another_process_builds_the_same_rows_and_imports_no_package(self) -> None:
        script = (
            "import json, sys; from t3vis.demo.corpus import docstring_corpus;"
            f"rows = docstring_corpus({SMALL}, max_per_package=40).to_dict();"
            "print(json.dumps([rows, sorted({'torch', 'transformers', 'sklearn', 'networkx'} & set(sys.modules))]))"
        )
        finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        rows, imported = json.loads(finished.stdout)
        assert rows == docstring_corpus(SMALL, max_per_package=40).to_dict()
        assert imported == []

    def test_the_seed_chooses_other_rows(self) -> None:
        one, other = (docstring_corpus(SMALL, max_per_package=40, seed=seed) for seed in (0, 1))
        assert one["text"] != other["text"]

    def test_a_text_of_two_packages_is_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shared = '"""Return the very same words in both of these packages, whichever it is."""\n'
        for name in ("t3vis_one", "t3vis_two"):
            (tmp_path / name).mkdir()
            own = f'def f():\n    """Do what only the package that is called {name} ever does or did."""\n'
            (tmp_path / name / "__init__.py").write_text(shared + own)
            (tmp_path / name / "broken.py").write_text("print 'Python 2'")
        monkeypatch.syspath_prepend(tmp_path)
        corpus = docstring_corpus(("t3vis_one", "t3vis_two"))
        assert sorted(corpus["source"]) == ["t3vis_one.f", "t3vis_two.f"]
        assert "t3vis_one" not in sys.modules

    @pytest.mark.parametrize(
        ("packages", "message"),
        [
            (("numpy", "no_such_package"), "'no_such_package' is not installed"),
            (("numpy", "scikit-learn"), "'scikit-learn' is not installed"),
            (("numpy", "typing"), "'typing' is a single module"),
            (("numpy", "numpy"), "two or more different packages"),
        ],
    )
    def test_unusable_packages_are_named(self, packages: tuple[str, ...], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            docstring_corpus(packages, max_per_package=5)


class TestProse:
    @pytest.mark.parametrize(
        ("docstring", "expected"),
        [
            (
                """Compute the arithmetic mean along the
                specified axis.

                Returns the average of the elements.

                Parameters
                ----------
                a : array_like
                """,
                "Compute the arithmetic mean along the specified axis. Returns the average of the elements.",
            ),
            (
                """Loads a model from the given path on disk, with its own tokenizer.
                Args:
                    path: where it lies
                """,
                "Loads a model from the given path on disk, with its own tokenizer.",
            ),
            (
                """Chinese whispers on a graph
                ===========================

                Finds communities in a large graph quickly::

                    secret = code()

                .. versionadded:: 1.2
                   Only then.

                >>> run()
                """,
                "Chinese whispers on a graph Finds communities in a large graph quickly::",
            ),
            (
                """See :func:`~numpy.linalg.norm`, :ref:`the guide <guide>` and [`~models.Bert`] at https://x.org/a.
                :param x: the *first* one
                """,
                "",
            ),
            (
                r"""Use :func:`~numpy.linalg.norm` or [`~models.Bert`] with **all** the `options` of
                :ref:`the user guide <guide>`.
                """,
                "Use numpy.linalg.norm or models.Bert with all the options of the user guide.",
            ),
            ("Too short to tell which package it comes from.", ""),
            ("", ""),
        ],
        ids=["numpy", "google", "rst", "markup too short", "markup", "short", "empty"],
    )
    def test_hand_made(self, docstring: str, expected: str) -> None:
        assert prose(inspect.cleandoc(docstring)) == expected

    def test_sixty_words_at_most(self) -> None:
        assert prose(" ".join(["word"] * 100)).split() == ["word"] * 60


class TestPlantWrongLabels:
    @pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
    def test_exactly_the_reported_labels_differ(self, fraction: float) -> None:
        clean = labelled(210, 4)
        dataset, example_ids = plant_wrong_labels(clean, fraction=fraction)
        differs = np.flatnonzero(np.array(dataset["label"]) != np.array(clean["label"]))
        assert len(example_ids) == round(fraction * 210)
        np.testing.assert_array_equal(differs, example_ids)
        assert dataset["text"][:] == clean["text"][:]
        assert dataset.features == clean.features

    def test_every_other_class_is_as_likely(self) -> None:
        clean = labelled(8000, 4)
        dataset, _ = plant_wrong_labels(clean, fraction=1.0)
        shifts = (np.array(dataset["label"]) - np.array(clean["label"])) % 4
        counts = np.bincount(shifts, minlength=4)
        assert counts[0] == 0
        # Binomial(8000, 1/3) has a standard deviation of 42.
        assert np.abs(counts[1:] - 8000 / 3).max() < 5 * 42

    def test_the_seed_decides(self) -> None:
        clean = labelled(200, 4)
        one, again, other = (plant_wrong_labels(clean, fraction=0.2, seed=seed) for seed in (1, 1, 2))
        assert one[0].to_dict() == again[0].to_dict()
        np.testing.assert_array_equal(one[1], again[1])
        assert one[1].tolist() != other[1].tolist()

    def test_bad_arguments_say_so(self) -> None:
        with pytest.raises(ConfigurationError, match=r"in \[0, 1\]; got 5"):
            plant_wrong_labels(labelled(10, 2), fraction=5)
        with pytest.raises(ConfigurationError, match="'text' must be a ClassLabel"):
            plant_wrong_labels(labelled(10, 2), column="text")
        with pytest.raises(ConfigurationError, match="at least 2 classes"):
            plant_wrong_labels(labelled(10, 1))


class TestReadDataset:
    def test_csv_keeps_every_text_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "intents.csv"
        path.write_text('text,category\n"Where, please,\nis it?",card\nnull,top up\nNA,card\n')
        dataset = read_dataset(path)
        assert dataset["text"][:] == ["Where, please,\nis it?", "null", "NA"]
        assert dataset.features["label"].names == ["card", "top up"]
        assert dataset["label"][:] == [0, 1, 0]

    def test_tsv_with_numbers_in_their_order(self, tmp_path: Path) -> None:
        path = tmp_path / "stars.tsv"
        path.write_text('label\tsentence\n10\t"fine" film\n9\t"dull\n')
        dataset = read_dataset(path)
        assert dataset["text"][:] == ['"fine" film', '"dull']
        assert dataset.features["label"].names == ["9", "10"]
        assert dataset["label"][:] == [1, 0]

    @pytest.mark.parametrize("suffix", [".json", ".jsonl"])
    def test_json_with_sentence_pairs(self, tmp_path: Path, suffix: str) -> None:
        rows = [
            {"id": "a", "premise": "It rains.", "hypothesis": "It is wet.", "label": 1},
            {"id": "b", "premise": "It snows.", "hypothesis": "It is hot.", "label": 0},
        ]
        path = tmp_path / f"pairs{suffix}"
        lines = "\n".join(json.dumps(row) for row in rows)
        path.write_text(lines if suffix == ".jsonl" else json.dumps(rows))
        dataset = read_dataset(path)
        assert dataset.column_names == ["text", "text_pair", "label"]
        assert dataset["text_pair"][:] == ["It is wet.", "It is hot."]
        assert dataset["label"][:] == [1, 0]

    def test_named_columns_come_first(self, tmp_path: Path) -> None:
        path = tmp_path / "reviews.csv"
        path.write_text("text,title,label,topic\nlong,short,1,b\nlonger,shorter,2,a\n")
        dataset = read_dataset(path, text_columns=["title"], label_column="topic")
        assert dataset.to_dict() == {"text": ["short", "shorter"], "label": [1, 0]}

    def test_a_folder_is_read_by_datasets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "test.csv").write_text("sentence,label\nfine,1\ndull,0\n")
        dataset = read_dataset(tmp_path / "data", split="test")
        assert dataset.to_dict() == {"text": ["fine", "dull"], "label": [1, 0]}

    @pytest.mark.parametrize(
        ("content", "options", "message"),
        [
            (
                "a,b,label\nx,y,1\nz,w,0\n",
                {},
                r"which columns hold the text.*a \(string\), b \(string\).*text_columns=",
            ),
            ("text,b\nx,y\n", {}, r"which column is the label.*text \(string\), b \(string\).*label_column="),
            ("text,label\nx,1\n", {"label_column": "gold"}, r"no column 'gold'.*text \(string\)"),
            ("text,label\nx,1\ny,1\n", {}, "'label' has one class only, '1'"),
            ("text,label\nx,1\ny,\n", {}, "'label' should hold a class.* 1 of 2 rows do not, the first is row 1"),
            ("text,label\nx,1\ny,2,3\n", {}, "line 3 does not have the 2 fields"),
            ("text,label\n", {}, "no rows"),
            ("text,label\nx,1\n", {"text_columns": ["label"], "label_column": "label"}, "a label apart from them"),
        ],
    )
    def test_what_cannot_be_read_says_why(
        self, tmp_path: Path, content: str, options: dict[str, Any], message: str
    ) -> None:
        path = tmp_path / "rows.csv"
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=message):
            read_dataset(path, **options)

    @pytest.mark.parametrize(
        ("content", "message"),
        [('{"text": "x"}', "expected a list"), ("[1]", "no object with named"), ("[", "cannot read .*rows.json")],
    )
    def test_json_of_another_form(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "rows.json"
        path.write_text(content)
        with pytest.raises(ConfigurationError, match=message):
            read_dataset(path)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"absent\.csv"):
            read_dataset(tmp_path / "absent.csv")
