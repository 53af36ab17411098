import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from t3vis import open_run
from t3vis.store.examples import Columns, ExamplesWriter
from t3vis.store.writer import create_run
from t3vis.viewer.texts import TextSearch, _Block

TEXTS = st.lists(st.text("aAbé ß日", max_size=6), min_size=1, max_size=8)


@given(TEXTS, st.text("ab ", min_size=1, max_size=3))
def test_what_is_found_contains_what_is_searched_for(texts, wanted):
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)])
    block = _Block(100, np.frombuffer(b"".join(encoded), np.uint8), offsets)
    assert block.examples == slice(100, 100 + len(texts))
    assert block.contains(wanted.encode()).tolist() == [wanted.encode() in text.lower() for text in encoded]


def test_a_search_goes_through_all_texts_and_not_across_them(tmp_path):
    texts = ["xa", "aa", "", "Ähre ähre", "a"]
    writer = create_run(tmp_path / "run.zarr", {"model": {"class": "None"}})
    examples = ExamplesWriter(tmp_path / "run.zarr" / "train" / "examples", len(texts))
    examples.add(Columns(texts={"text": texts}))
    split = {"kind": "train", "mode": "train", "n_examples": len(texts), "fingerprint": examples.close()}
    writer.add_split("train", split)
    writer.close()
    search = TextSearch(open_run(tmp_path / "run.zarr").train)
    assert search.find("aa").tolist() == [1]
    assert search.find("ä").tolist() == [3]
    assert search.find("\0").tolist() == []
    assert search.find("").tolist() == [0, 1, 2, 3, 4]
    assert search.find("A").tolist() == [0, 1, 4]  # from what is held by now
