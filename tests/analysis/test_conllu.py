import pytest

from t3vis.analysis.conllu import sentences
from t3vis.errors import AnalysisError


def line(number, word, head, relation):
    return "\t".join([number, word, "_", "_", "_", "_", head, relation, "_", "_"])


def test_ranges_and_empty_nodes_are_passed_over():
    lines = [
        "# newdoc id = d1",
        "# text = It's",
        line("1-2", "It's", "_", "_"),
        line("1", "It", "2", "nsubj"),
        line("2", "'s", "0", "root"),
        line("2.1", "gone", "_", "_"),
        "",
        line("1", "So", "0", "root"),
    ]
    first, second = sentences(lines)
    assert first.words == ("It", "'s")
    assert first.heads == (1, -1)
    assert first.comments == {"newdoc id": "d1", "text": "It's"}
    assert second.words == ("So",)
    assert second.comments == {}


def test_lines_that_are_none():
    with pytest.raises(AnalysisError, match="line 2 has 3 columns"):
        list(sentences([line("1", "So", "0", "root"), "a\tb\tc"]))
    with pytest.raises(AnalysisError, match="line 1 has the head 'x'"):
        list(sentences([line("1", "So", "x", "root")]))
