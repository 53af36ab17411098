import pytest

from t3vis.analysis.attention_patterns import KINDS
from t3vis.analysis.conllu import Sentence
from t3vis.probing.attention_patterns import vocabulary_of
from t3vis.probing.attention_texts import document_rows, text_rows
from tests.probing.parsed import SENTENCE, SHORT, word_pieces


@pytest.fixture(scope="module")
def tokenizer():
    return word_pieces()


def test_sentences_of_a_document_stand_together_as_far_as_there_is_room(tokenizer):
    begin = Sentence(SHORT.words, SHORT.heads, SHORT.relations, {"newdoc id": "b"})
    found = document_rows([SENTENCE, SHORT, SHORT, begin], tokenizer, max_tokens=14)
    lengths = [len(row["input_ids"]) for row in found.rows]
    assert lengths == [13, 6, 6]  # 7 + 4 tokens, then there is no room for 4 more; then a new document
    assert found.sentence_ids[0] == [-1, *[0] * 7, *[1] * 4, -1]
    assert found.sentence_ids[2] == [-1, 0, 0, 0, 0, -1]


def test_a_sentence_that_is_too_long_is_cut(tokenizer):
    (row,) = document_rows([SENTENCE], tokenizer, max_tokens=5).rows
    assert len(row["input_ids"]) == 5


def test_texts(tokenizer):
    rows = text_rows(["the dog", "the cat chases the dog ."], tokenizer, max_tokens=6)
    assert [len(row["input_ids"]) for row in rows] == [4, 6]


def test_the_vocabulary_of_a_tokenizer(tokenizer):
    known = vocabulary_of(tokenizer)
    kinds = dict(zip(tokenizer.convert_ids_to_tokens(range(len(tokenizer))), known.kinds, strict=True))
    names = {name: KINDS[kind] for name, kind in kinds.items()}
    assert names["[CLS]"] == "cls"
    assert names["[SEP]"] == "sep"
    assert names["[PAD]"] == "special"
    assert names["."] == "punctuation"
    assert names["##s"] == "word"
