"""Which attention heads find which syntactic relations, given parsed sentences; in one pass, as the patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import PreTrainedModel

from t3vis.analysis.conllu import Sentence
from t3vis.analysis.syntax import DIRECTIONS, RelationScores
from t3vis.errors import ProbingError
from t3vis.gates import Attention
from t3vis.probing.attention import AttentionCall, AttentionReader
from t3vis.probing.batches import batches

LEFT_OUT = ("punct", "root")


def relation_scores(
    model: PreTrainedModel, parsed: Sequence[Sentence], tokenizer: Any, *, batch_size: int = 16, what: str | None = None
) -> RelationScores:
    """How often each head of self-attention finds the head, or the dependents, of the words of parsed sentences.

    Parameters
    ----------
    model
        Runs in eval mode, and is left as it was.
    parsed
        Sentences in words; ``punct`` and the root are left out.
    tokenizer
        A fast one, which knows the words of its tokens.
    batch_size
        Sentences at a time.
    what
        Shown on a progress bar.

    Raises
    ------
    ProbingError
        If there is no arc, or the model does not give its attention weights.

    Notes
    -----
    Attention to a word is the sum of that to its tokens, attention from a word the mean of that from its tokens. Arcs
    that a causal mask hides are not counted.

    References
    ----------
    Clark et al. (2019), "What Does BERT Look At? An Analysis of BERT's Attention", sections 4.1 and 4.2.
    """
    encoded = tokenizer([list(sentence.words) for sentence in parsed], is_split_into_words=True, truncation=True)
    counts = Counter(name for sentence in parsed for name in sentence.relations if name not in LEFT_OUT)
    if not counts:
        raise ProbingError("there is no arc to look for; pass sentences with their parse, from a CoNLL-U file.")
    relations = tuple(name for name, _ in counts.most_common())
    numbers = {name: number for number, name in enumerate(relations)}
    rows = [
        {name: values[number] for name, values in encoded.items() if name != "overflow_to_sample_mapping"}
        for number in range(len(parsed))
    ]
    sums: dict[tuple[Attention, int], _Sums] = {}
    with AttentionReader(model) as reader:
        for batch in batches(model, rows, batch_size=batch_size, what=what):
            width = batch.inputs["input_ids"].shape[1]
            arcs = _arcs([parsed[i] for i in batch.ids], [encoded.word_ids(int(i)) for i in batch.ids], width, numbers)

            def add(call: AttentionCall, arcs: _Arcs = arcs) -> None:
                if call.kind in ("self", "encoder"):
                    found, n_arcs = _found(call, arcs, len(relations))
                    layer = sums.setdefault((call.kind, call.index), _Sums())
                    layer.found, layer.n_arcs = layer.found + found, layer.n_arcs + n_arcs

            reader.read(batch.inputs, add)
    layers = [sums[key] for key in sorted(sums)]
    n_heads = max(len(np.asarray(layer.found)) for layer in layers)
    accuracy = np.full((len(layers), n_heads, len(DIRECTIONS), len(relations)), np.nan)
    for number, layer in enumerate(layers):
        found, n_arcs = np.asarray(layer.found), np.asarray(layer.n_arcs)
        accuracy[number, : len(found)] = found / np.where(n_arcs > 0, n_arcs, np.nan)
    baseline, offset = fixed_offsets(parsed, relations)
    return RelationScores(
        relations=relations,
        attention=tuple(kind for kind, _ in sorted(sums)),
        accuracy=accuracy,
        n_arcs=np.stack([np.asarray(layer.n_arcs) for layer in layers]),
        baseline=baseline,
        offset=offset,
    )


def fixed_offsets(
    parsed: Sequence[Sentence], relations: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each relation the distance from dependent to head that is most frequent, after the share of its arcs.

    Examples
    --------
    >>> parsed = [Sentence(("a", "dog", "barks"), (1, 2, -1), ("det", "nsubj", "root"))]
    >>> fixed_offsets(parsed, ["det"])
    (array([1.]), array([1]))
    """
    offsets: dict[str, Counter[int]] = {name: Counter() for name in relations}
    for sentence in parsed:
        for word, (head, name) in enumerate(zip(sentence.heads, sentence.relations, strict=True)):
            if name in offsets and head >= 0:
                offsets[name][head - word] += 1
    best = [offsets[name].most_common(1)[0] for name in relations]
    shares = [n / offsets[name].total() for name, (_, n) in zip(relations, best, strict=True)]
    return np.array(shares), np.array([offset for offset, _ in best])


@dataclass
class _Sums:
    """Of one layer: arcs found, shape (n_heads, n_directions, n_relations), and arcs, (n_directions, n_relations)."""

    found: NDArray[np.int64] | int = 0
    n_arcs: NDArray[np.int64] | int = 0


@dataclass(frozen=True, eq=False)
class _Arcs:
    """The arcs of a batch, -1 for none.

    ``words`` (B, T) says which word a token belongs to, ``heads`` and ``relations`` (B, W) of each word its head and
    the number of the relation.
    """

    words: Tensor
    heads: Tensor
    relations: Tensor


def _arcs(
    parsed: Sequence[Sentence], word_ids: Sequence[Sequence[int | None]], width: int, numbers: dict[str, int]
) -> _Arcs:
    longest = max(len(sentence.words) for sentence in parsed)
    words = torch.full((len(parsed), width), -1)
    heads, relations = torch.full((2, len(parsed), longest), -1)
    for row, (sentence, ids) in enumerate(zip(parsed, word_ids, strict=True)):
        words[row, : len(ids)] = torch.tensor([-1 if word is None else word for word in ids])
        kept = set(ids)
        for word, (head, name) in enumerate(zip(sentence.heads, sentence.relations, strict=True)):
            if name in numbers and head >= 0 and word in kept and head in kept:
                heads[row, word], relations[row, word] = head, numbers[name]
    return _Arcs(words, heads, relations)


def _found(call: AttentionCall, arcs: _Arcs, n_relations: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Arcs that each head finds in each direction, and arcs that there are, by relation."""
    device, n_words = call.weights.device, arcs.heads.shape[1]
    members = one_hot(arcs.words.to(device) + 1, n_words + 1)[..., 1:].float()
    heads, relations = arcs.heads.to(device), arcs.relations.to(device)
    attention = word_attention(call.weights.float(), members)
    visible = members.transpose(1, 2) @ call.visible.float() @ members > 0
    nothing = ~members.any(1)[:, None, :] | torch.eye(n_words, dtype=torch.bool, device=device)
    by_relation = one_hot(relations + 1, n_relations + 1)[..., 1:].float()
    found, n_arcs = [], []
    for direction in DIRECTIONS:
        is_to_head = direction == "to_head"
        seen = visible if is_to_head else visible.transpose(1, 2)
        scores = attention if is_to_head else attention.transpose(2, 3)
        picked = scores.masked_fill((nothing | ~seen)[:, None], -1).argmax(3)
        counted = by_relation * seen.gather(2, heads.clamp(min=0)[..., None])
        found.append(torch.einsum("bhw,bwr->hr", (picked == heads[:, None]).float(), counted))
        n_arcs.append(counted.sum((0, 1)))
    return torch.stack(found, 1).long().cpu().numpy(), torch.stack(n_arcs).long().cpu().numpy()


def word_attention(weights: Tensor, members: Tensor) -> Tensor:
    """Attention between words: the sum over the tokens of the one attended to, the mean over those of the other.

    Parameters
    ----------
    weights
        Shape (n_examples, n_heads, n_tokens, n_tokens).
    members
        Shape (n_examples, n_tokens, n_words): 1 where a token is part of a word.

    Returns
    -------
    Shape (n_examples, n_heads, n_words, n_words); zero from and to a word without tokens.

    References
    ----------
    Clark et al. (2019), section 4.1.

    Examples
    --------
    Of three tokens the last two are one word:

    >>> weights = torch.tensor([[[[0.2, 0.3, 0.5], [0.6, 0.2, 0.2], [0.4, 0.5, 0.1]]]])
    >>> word_attention(weights, torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]]))
    tensor([[[[0.2000, 0.8000],
              [0.5000, 0.5000]]]])
    """
    from_words = (members / members.sum(1, keepdim=True).clamp(min=1)).transpose(1, 2)
    return torch.matmul(from_words[:, None], torch.matmul(weights, members[:, None]))
