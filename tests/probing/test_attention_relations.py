"""The definitions of Clark et al. (2019), section 4, on examples made by hand; and against a naive loop."""

import numpy as np
import pytest
import torch

from t3vis.analysis.conllu import Sentence
from t3vis.analysis.syntax import DIRECTIONS, best_heads
from t3vis.errors import ProbingError
from t3vis.probing import attention_relations
from t3vis.probing.attention import AttentionCall, Tokens, attention_weights
from t3vis.probing.attention_relations import relation_scores
from tests.callbacks.tiny import pad, tiny_model
from tests.probing.parsed import SENTENCE, SHORT, word_pieces


@pytest.fixture(scope="module")
def tokenizer():
    return word_pieces()


def call_of(weights):
    real = torch.ones(1, weights.shape[-1], dtype=torch.bool)
    tokens = Tokens(None, real)
    return AttentionCall("self", 0, weights, tokens, tokens, real[:, :, None] & real[:, None])


def test_a_head_made_by_hand(tokenizer):
    """[CLS] the dog chase ##s the cat . [SEP]: 'chases' is two tokens, whose attention is averaged and summed."""
    weights = torch.full((1, 1, 9, 9), 0.01)
    weights[..., 1, 2] = 0.5  # the -> dog: the head of its determiner
    weights[..., 2, [3, 4, 6]] = torch.tensor([0.2, 0.2, 0.3])  # dog -> chase + ##s: 0.4 together, cat 0.3
    weights[..., 5, 2] = 0.5  # the second 'the' looks at the wrong noun
    weights[..., 6, [2, 8]] = torch.tensor([0.1, 0.9])  # cat: most of it to [SEP], which is passed over
    weights[..., 4, 6] = 0.6  # ##s -> cat: (0.01 + 0.6) / 2 from 'chases', more than from any other word
    weights[..., 7, [1, 2, 5]] = 0.4  # the full stop attends most to both determiners and the subject
    numbers = {"det": 0, "nsubj": 1, "obj": 2}
    encoded = tokenizer([list(SENTENCE.words)], is_split_into_words=True)
    arcs = attention_relations._arcs([SENTENCE], [encoded.word_ids(0)], 9, numbers)
    found, n_arcs = attention_relations._found(call_of(weights), arcs, 3)
    assert n_arcs.tolist() == [[2, 1, 1], [2, 1, 1]]
    assert dict(zip(DIRECTIONS, found[0].tolist(), strict=True)) == {
        "to_head": [1, 1, 0],  # one determiner of two, the subject; the object looks at 'dog'
        "to_dependent": [0, 0, 1],  # of the words, 'chases' attends most to 'cat'
    }


def naive_scores(weights, encoded, parsed, relations, causal):
    """Arcs found by one head, and arcs that can be seen, by direction and relation; one word at a time."""
    found, n_arcs = np.zeros((2, 2, len(relations)))
    for number, (tokens, sentence) in enumerate(zip(weights, parsed, strict=True)):
        ids, n = encoded.word_ids(number), len(sentence.words)
        parts = [[i for i, word in enumerate(ids) if word == w] for w in range(n)]
        words = [[sum(tokens[i, j] for i in a for j in b) / len(a) for b in parts] for a in parts]
        for w in range(n):
            name, head = sentence.relations[w], sentence.heads[w]
            if name not in relations:
                continue
            for direction in range(2):
                others = [v for v in range(n) if v != w and (not causal or (v < w) == (direction == 0))]
                if head not in others:
                    continue
                best = max(others, key=lambda v: words[w][v] if direction == 0 else words[v][w])
                found[direction, relations.index(name)] += best == head
                n_arcs[direction, relations.index(name)] += 1
    return found, n_arcs


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_scores_are_those_of_a_naive_loop(tokenizer, kind):
    model, parsed = tiny_model(kind), [SENTENCE, SHORT, SENTENCE, SHORT]
    scores = relation_scores(model, parsed, tokenizer, batch_size=3)
    assert sorted(scores.relations) == ["det", "nsubj", "obj"]
    encoded = tokenizer([list(sentence.words) for sentence in parsed], is_split_into_words=True)
    rows = [{name: encoded[name][i] for name in ("input_ids", "attention_mask")} for i in range(4)]
    alone = [attention_weights(model, pad([row])) for row in rows]
    for layer, head in np.ndindex(2, scores.accuracy.shape[1]):
        weights = [one[layer].weights[0][head].astype(float) for one in alone]
        found, n_arcs = naive_scores(weights, encoded, parsed, scores.relations, kind == "llama")
        np.testing.assert_array_equal(scores.n_arcs[layer], n_arcs)
        known = n_arcs > 0
        np.testing.assert_allclose(scores.accuracy[layer, head][known], found[known] / n_arcs[known])
        assert np.isnan(scores.accuracy[layer, head][~known]).all()


def test_the_fixed_offset_beside_it(tokenizer):
    scores = relation_scores(tiny_model("bert"), [SENTENCE, SHORT], tokenizer)
    baselines = dict(zip(scores.relations, zip(scores.baseline, scores.offset, strict=True), strict=True))
    assert baselines["det"] == (1, 1)
    assert baselines["nsubj"] == (1, 1)
    assert baselines["obj"][0] == 0.5
    best = best_heads(scores, min_arcs=2)
    assert [row.relation for row in best][:1] == ["det"]
    assert {row.relation for row in best_heads(scores, min_arcs=3)} == set()


def test_words_that_were_cut_off_are_not_counted(tokenizer):
    long = Sentence(SENTENCE.words * 8, (*range(1, 48), -1), ("det",) * 47 + ("root",))
    scores = relation_scores(tiny_model("bert"), [long], tokenizer)
    assert 0 < scores.n_arcs[0, 0, 0] < 38


def test_nothing_to_look_for(tokenizer):
    with pytest.raises(ProbingError, match="no arc"):
        relation_scores(tiny_model("bert"), [Sentence(("dog",), (-1,), ("root",))], tokenizer)
