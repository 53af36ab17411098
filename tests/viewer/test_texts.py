from hypothesis import given
from hypothesis import strategies as st

from t3vis import open_run
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.writer import create_run
from t3vis.viewer.texts import TextSearch

LETTERS = "aAbé \0ß日"


def written(path, texts):
    examples = ExamplesWriter(path / "train" / "examples", len(texts))
    examples.add(Columns(texts={"text": texts}))
    writer = create_run(path, {"model": {"class": "None"}})
    writer.add_split(
        "train", {"kind": "train", "mode": "train", "n_examples": len(texts), "fingerprint": examples.close()}
    )
    writer.close()
    return open_run(path).train


def small(text):
    """ASCII letters in small; others have to be as they are."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


@given(
    st.lists(st.text(LETTERS.replace("\0", ""), max_size=6), min_size=1, max_size=8),
    st.text("aAb ", min_size=1, max_size=3),
)
def test_what_is_found_contains_what_was_searched_for(tmp_path_factory, texts, wanted):
    split = written(tmp_path_factory.mktemp("texts") / "run.zarr", texts)
    found = TextSearch(split).find(wanted).tolist()
    assert found == [number for number, text in enumerate(texts) if small(wanted) in small(text)]


def test_nothing_is_found_across_two_texts(tmp_path):
    split = written(tmp_path / "run.zarr", ["xa", "aa", "", "Ähre ähre", "a"])
    search = TextSearch(split)
    assert search.find("aa").tolist() == [1]
    assert search.find("ä").tolist() == [3]
    assert search.find("\0").tolist() == []
    assert search.find("").tolist() == [0, 1, 2, 3, 4]
    assert search.find("a").tolist() == [0, 1, 4]  # from what is held by now
