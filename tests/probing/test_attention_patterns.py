"""The patterns of all heads in one pass are those of a naive loop over the examples, one after another."""

import gc
import warnings

import numpy as np
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from t3vis.analysis.attention_patterns import CLS, PATTERNS, PUNCTUATION, SEP, SPECIAL, WORD, Vocabulary
from t3vis.errors import ProbingError
from t3vis.probing.attention import AttentionReader, attention_weights
from t3vis.probing.attention_patterns import PatternSums, attention_patterns
from tests.callbacks.tiny import PAD, VOCABULARY, pad, pad_left, tiny_model
from tests.probing.naive import naive_patterns

BEGIN, END, STOP, COMMA, MASK = 1, 2, 3, 4, 5
SETTINGS = {"max_offset": 4, "n_bins": 5}


def known_vocabulary():
    kinds = np.full(VOCABULARY, WORD)
    kinds[[PAD, BEGIN, END, STOP, COMMA, MASK]] = SPECIAL, CLS, SEP, PUNCTUATION, PUNCTUATION, SPECIAL
    ends = np.zeros(VOCABULARY, bool)
    ends[STOP] = True
    return Vocabulary(kinds, ends)


def made_examples(n=13, seed=0):
    """Texts of few words, so that they come again, in sentences; [CLS] before and [SEP] after."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        words = rng.choice(
            [STOP, COMMA, MASK, *range(10, 16)], rng.integers(1, 14), p=[0.15, 0.1, 0.05, *[0.7 / 6] * 6]
        )
        rows.append({"input_ids": [BEGIN, *words.tolist(), END]})
    return rows


EXAMPLES = made_examples()
SPANS = [[-1, *(np.arange(len(row["input_ids"]) - 2) // 3 - 1), -1] for row in EXAMPLES]


def sentences_of(ids):
    """A sentence ends after a run of full stops and special tokens."""
    number, found, before = 0, [], False
    for token in ids:
        ends = token in (STOP, BEGIN, END, MASK, PAD)
        number += before and not ends
        found.append(number)
        before = ends
    return found


def expected_patterns(model, examples, *, causal, spans=SPANS, kind="self"):
    """The naive loop over each head, with the weights of each example alone."""
    kinds = known_vocabulary().kinds
    ids = [row["input_ids"] for row in examples]
    tokens = [ids, [kinds[i] for i in ids], [sentences_of(i) for i in ids], spans]
    alone = [attention_weights(model, pad([with_mask(row)])) for row in examples]
    layers = [number for number, layer in enumerate(alone[0]) if layer.attention == kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice")
        return [
            [
                naive_patterns(
                    [one[layer].weights[0][head].astype(float) for one in alone], *tokens, causal=causal, **SETTINGS
                )
                for head in range(len(alone[0][layer].heads))
            ]
            for layer in layers
        ]


def with_mask(row):
    return {**row, "attention_mask": [1] * len(row["input_ids"])}


def assert_equal(found, expected):
    for layer, heads in enumerate(expected):
        for head, figures in enumerate(heads):
            for name, values in figures.items():
                array = getattr(found, name)[layer]
                array = array if name in ("chance", "n_examples") else array[head]
                np.testing.assert_allclose(array, values, rtol=1e-4, atol=1e-6, err_msg=f"{name} of {layer}, {head}")


@pytest.mark.parametrize("kind", ["bert", "llama", "deberta-v2"])
def test_sums_over_padded_batches_are_those_of_a_naive_loop(kind):
    model = tiny_model(kind)
    found = attention_patterns(model, EXAMPLES, known_vocabulary(), span_ids=SPANS, batch_size=4, **SETTINGS)
    assert found.attention == ("self", "self")
    assert_equal(found, expected_patterns(model, EXAMPLES, causal=kind == "llama"))


def figures(found):
    return {name: value for name, value in vars(found).items() if name != "attention"}


def assert_same(one, other):
    for name, values in figures(one).items():
        np.testing.assert_allclose(figures(other)[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def reference():
    return attention_patterns(tiny_model("llama"), EXAMPLES, known_vocabulary(), **SETTINGS)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_size_of_the_batches_changes_nothing(reference, batch_size):
    model = tiny_model("llama")
    assert_same(reference, attention_patterns(model, EXAMPLES, known_vocabulary(), batch_size=batch_size, **SETTINGS))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_attention_implementation_changes_nothing(reference, implementation):
    model = tiny_model("llama")
    model.set_attn_implementation(implementation)
    assert_same(reference, attention_patterns(model, EXAMPLES, known_vocabulary(), **SETTINGS))


@pytest.mark.parametrize("collate", [pad, pad_left])
def test_padding_changes_nothing(reference, collate):
    sums = PatternSums(known_vocabulary(), **SETTINGS)
    longest = {"input_ids": [BEGIN, *[10] * 30, END]}
    with AttentionReader(tiny_model("llama")) as reader:
        for row in EXAMPLES:
            batch = collate([with_mask(row), with_mask(longest)])  # padded to 32, and then taken alone
            sums.begin()
            reader.read({name: values[:1] for name, values in batch.items()}, sums.add)
    assert_same(reference, sums.result())


def test_given_sentences():
    model, known = tiny_model("bert"), known_vocabulary()
    by_rule = attention_patterns(model, EXAMPLES, known)
    ids = [sentences_of(row["input_ids"]) for row in EXAMPLES]
    assert_same(by_rule, attention_patterns(model, EXAMPLES, known, sentence_ids=ids))
    one = [[0] * len(row["input_ids"]) for row in EXAMPLES]
    unknown = attention_patterns(model, EXAMPLES, known, sentence_ids=one)
    assert np.isnan(unknown.of("same_sentence")).all()  # in texts of one sentence there is nothing to tell
    assert not np.isnan(by_rule.of("same_sentence")).any()


def test_a_causal_model_has_no_next_token(reference):
    assert np.isnan(reference.of("next")).all()
    assert not np.isnan(reference.of("previous")).any()
    offsets = reference.by_offset[..., SETTINGS["max_offset"] + 1 :]
    assert np.isnan(offsets).all()


def test_encoder_decoder_and_cross_attention():
    model = tiny_model("bart", auto=AutoModelForSeq2SeqLM)
    rows = [{**row, "labels": [10, 11, END][: 1 + i % 3]} for i, row in enumerate(EXAMPLES)]
    found = attention_patterns(model, rows, known_vocabulary(), span_ids=SPANS, **SETTINGS)
    assert found.attention == ("encoder", "encoder", "decoder", "cross")
    assert_equal(found, expected_patterns(_with_labels(model), EXAMPLES, causal=False, kind="encoder"))
    cross = dict(zip(PATTERNS, found.mass[3, 0], strict=True))
    assert {name for name, mass in cross.items() if np.isnan(mass)} == {
        "previous", "next", "same_position", "same_sentence", "same_span",
    }  # fmt: skip
    assert np.isnan(found.by_offset[3]).all()
    assert np.isnan(found.distance[3]).all()
    assert found.by_position[3, 0].sum(1) == pytest.approx(np.ones(5), abs=1e-5)


def _with_labels(model):
    """The same with labels of its own: the encoder does not see them."""

    class Labelled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.config = model, model.config

        def forward(self, input_ids, attention_mask, return_dict=True, use_cache=False):
            return model(input_ids, attention_mask=attention_mask, labels=input_ids)

        def get_encoder(self):
            return model.get_encoder()

        def get_decoder(self):
            return model.get_decoder()

    return Labelled()


def known_weights(call_weights, ids):
    """Sums of weights given by hand, shape (n_heads, n, n)."""
    from t3vis.probing.attention import AttentionCall, Tokens

    sums = PatternSums(known_vocabulary(), **SETTINGS)
    sums.begin()
    real = torch.ones(1, len(ids), dtype=torch.bool)
    tokens = Tokens(torch.tensor([ids]), real)
    visible = real[:, :, None] & real[:, None]
    sums.add(AttentionCall("self", 0, torch.tensor(call_weights)[None].float(), tokens, tokens, visible))
    return sums.result()


def test_heads_made_by_hand_follow_what_they_were_made_for():
    ids = [BEGIN, 10, 11, 10, STOP, 12, 13, END]
    n = len(ids)
    previous, following, itself = (np.eye(n, k=k) for k in (-1, 1, 0))
    same = np.zeros((n, n))
    same[1, 3] = same[3, 1] = 1
    same[[0, 2, *range(4, n)], 0] = 1
    found = known_weights(np.stack([previous, following, itself, same, np.full((n, n), 1 / n)]), ids)
    scores = {name: pytest.approx(found.of(name)[0].tolist()) for name in PATTERNS if name != "same_span"}
    # [CLS] before the first word and [SEP] after the last are no words: these words have no token before, and after.
    assert scores["previous"] == [1, 0, 0, 0, 0.125]
    assert scores["next"] == [0, 1, 0, 0, 0.125]
    assert scores["same_position"] == [0, 0, 1, 0, 0.125]
    assert scores["same_token"] == [0, 0, 0, 1, 0.125]
    assert scores["cls"] == [1 / 6, 0, 0, 4 / 6, 0.125]
    assert found.lift[0, 3, PATTERNS.index("same_token")] == pytest.approx(8)
    assert found.relative_entropy[0].round(6).tolist() == [0, 0, 0, 0, 1]
    assert found.entropy[0, 4] == pytest.approx(np.log(8))
    assert found.by_offset[0, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert found.holds[0, :, PATTERNS.index("next")].tolist() == [0, 1, 0, 0, 0]


def test_lift_over_chance_of_the_same_token():
    """A head that attends to all alike has a lift of one, however often tokens come again."""
    weights = np.full((1, 9, 9), 1 / 9)
    for ids in ([BEGIN, 10, 10, 11, 12, 13, 14, 15, END], [BEGIN, *[10, 11, 12] * 2, 15, END]):
        found = known_weights(weights, ids)
        assert found.lift[0, 0, PATTERNS.index("same_token")] == pytest.approx(1)


def test_nothing_to_sum():
    with pytest.raises(ProbingError, match="no example"):
        attention_patterns(tiny_model("bert"), [], known_vocabulary())


def numbers_held(sums):
    """Numbers in all that the sums hold."""
    means = [array for layer in sums._layers.values() for mean in layer.means.values() for array in vars(mean).values()]
    pooled = [array for layer in sums._layers.values() for array in (layer.offsets, layer.n_pairs)]
    return sum(np.asarray(array).size for array in (*means, *pooled))


def tensor_numbers():
    """Numbers in all tensors that are alive."""
    gc.collect()
    return sum(thing.numel() for thing in gc.get_objects() if type(thing) is torch.Tensor)


def test_memory_does_not_grow_with_the_examples():
    sums = PatternSums(known_vocabulary(), **SETTINGS)
    held, alive = [], []
    with AttentionReader(tiny_model("bert")) as reader:
        for start in range(0, 96, 8):
            rows = [{"input_ids": [BEGIN, *[10 + i % 5] * (1 + i % 8), END]} for i in range(start, start + 8)]
            sums.begin()
            reader.read(pad([with_mask(row) for row in rows]), sums.add)
            held.append(numbers_held(sums))
            if start in (8, 88):
                alive.append(tensor_numbers())
    assert len(set(held)) == 1
    assert held[0] > 1000
    assert len(set(alive)) == 1
