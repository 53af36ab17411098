import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from t3vis.analysis.attention_patterns import (
    KINDS,
    PATTERNS,
    HeadPatterns,
    RunningMean,
    cluster_heads,
    head_names,
    strongest,
)
from t3vis.errors import AnalysisError


def patterns_of(masses, relative_entropy, chance=0.05):
    """Scores with these masses, shape (n_layers, n_heads, n_patterns)."""
    shape = masses.shape
    return HeadPatterns(
        attention=("self",) * shape[0],
        mass=masses,
        error=np.full(shape, 0.01),
        chance=np.full((shape[0], shape[2]), chance),
        top=masses,
        holds=masses,
        n_examples=np.full((shape[0], shape[2]), 10),
        entropy=relative_entropy * 3,
        relative_entropy=relative_entropy,
        distance=np.ones(shape[:2]),
        by_offset=np.zeros((*shape[:2], 5)),
        by_position=np.zeros((*shape[:2], 2, 2)),
        by_kind=np.zeros((*shape[:2], len(KINDS), len(KINDS))),
    )


def made_of(*heads, n_layers=1):
    """Heads given by their masses, as dictionaries, each with its relative entropy under ``entropy``."""
    masses = np.array([[head.get(name, 0.02) for name in PATTERNS] for head in heads])
    entropy = np.array([head.get("entropy", 0.5) for head in heads])
    return patterns_of(masses.reshape(n_layers, -1, len(PATTERNS)), entropy.reshape(n_layers, -1))


def test_heads_are_named_after_what_they_follow():
    found = made_of(
        {"previous": 0.9, "same_sentence": 0.95},
        {"delimiter": 0.8, "cls": 0.1, "sep": 0.7},
        {"delimiter": 0.5, "cls": 0.25, "sep": 0.25},
        {"same_sentence": 0.9},
        {"entropy": 0.95},
        {"next": 0.25},
        {"first": 0.9, "cls": 0.9, "delimiter": 0.9},
        {"first": 0.9},
        {"same_token": 0.35, "cls": 0.45, "same_sentence": 0.5, "delimiter": 0.5},
    )
    names = ["previous", "sep", "delimiter", "same_sentence", "broad", "mixed", "cls", "first"]
    expected = [*((name,) for name in names), ("same_sentence", "cls", "same_token")]
    assert head_names(found) == {(0, head): several for head, several in enumerate(expected)}


def test_a_head_that_is_not_there_has_no_name():
    found = patterns_of(np.full((1, 2, len(PATTERNS)), 0.9), np.array([[0.5, np.nan]]))
    assert list(head_names(found)) == [(0, 0)]


def test_a_mass_that_is_no_more_than_chance_names_no_head():
    found = patterns_of(np.full((1, 1, len(PATTERNS)), 0.6), np.array([[0.5]]), chance=0.4)
    assert head_names(found) == {(0, 0): ("mixed",)}


def test_the_strongest_heads_of_a_pattern():
    found = made_of({"next": 0.4}, {"next": 0.7}, {}, {"next": 0.1}, n_layers=2)
    heads = strongest(found, "next", n=2)
    assert [(head.layer, head.head, head.mass) for head in heads] == [(0, 1, 0.7), (0, 0, 0.4)]
    assert heads[0].lift == pytest.approx(14)
    unknown = patterns_of(np.full((1, 2, len(PATTERNS)), np.nan), np.zeros((1, 2)))
    assert strongest(unknown, "next") == []


def test_heads_that_follow_the_same_pattern_form_a_cluster():
    rng = np.random.default_rng(0)
    kinds = [{"previous": 0.9}, {"sep": 0.8, "delimiter": 0.85}, {"entropy": 0.95}]
    heads = [{name: mass + rng.normal(0, 0.02) for name, mass in kinds[i % 3].items()} for i in range(24)]
    heads += [{"previous": 0.88}]
    found = cluster_heads(made_of(*heads))
    assert found.n_clusters == 3
    assert found.silhouette > 0.8
    labels = found.labels[0]
    for kind in range(3):
        assert len(set(labels[kind:24:3])) == 1
    assert labels[0] == labels[24] == 0  # nine heads: the largest cluster
    assert found.profiles[0][found.features.index("previous")] == pytest.approx(0.9, abs=0.02)
    assert cluster_heads(made_of(*heads), n_clusters=5).n_clusters == 5


def test_missing_heads_and_patterns_are_left_out_of_the_clusters():
    found = made_of({"previous": 0.9}, {"previous": 0.8}, {"sep": 0.9}, {"sep": 0.8}, {}, {}, n_layers=2)
    found.mass[:, :, PATTERNS.index("next")] = np.nan
    found.mass[1, 2], found.relative_entropy[1, 2] = np.nan, np.nan
    clusters = cluster_heads(found)
    assert clusters.labels[1, 2] == -1
    assert (clusters.labels.ravel()[:5] >= 0).all()
    assert "next" not in clusters.features


def test_too_few_heads():
    with pytest.raises(AnalysisError, match="too few"):
        cluster_heads(made_of({}, {}))


@given(arrays(float, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(-5, 5) | st.just(np.nan)))
def test_a_running_mean_does_not_depend_on_the_batches(rows):
    whole, parts = RunningMean(), RunningMean()
    whole.add(rows)
    for row in rows:
        parts.add(row[None])
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-12)
    np.testing.assert_allclose(parts.error, whole.error, atol=1e-6)
    for column in range(3):
        known = rows[:, column][~np.isnan(rows[:, column])]
        expected = known.mean() if known.size else np.nan
        np.testing.assert_allclose(whole.mean[column], expected, atol=1e-12)
        if known.size > 1:
            np.testing.assert_allclose(whole.error[column], known.std(ddof=1) / np.sqrt(known.size), atol=1e-6)
