"""Requests to the model: what the page may ask, checked, and the work that answers it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from t3vis.errors import ProbingError, T3VisError
from t3vis.store.reader import Run, Split
from t3vis.viewer.framing import framed
from t3vis.viewer.heads import N_FOR_PATTERNS, described_patterns
from t3vis.viewer.worker import Work

if TYPE_CHECKING:
    from t3vis.viewer.instances import Asked
    from t3vis.viewer.models import Loaded

Kind = Literal["attention", "saliency", "predict", "prune", "metric", "importance", "patterns"]
KINDS: tuple[Kind, ...] = get_args(Kind)
METHODS = (
    "cp_lrp",
    "attnlrp",
    "input_x_gradient",
    "integrated_gradients",
    "smoothgrad",
    "occlusion",
    "gradient_norm",
    "attention_rollout",
)
"""Names of ``t3vis.probing.saliency.METHODS``, which is not imported before a model is needed."""
MOST_CHARACTERS = 100_000
MOST_PRUNED = 10_000

_FIELDS: Mapping[str, type] = {
    "kind": str, "client": str, "split": str, "epoch": int, "id": int, "text": list, "ids": list, "pruned": list,
    "layer": int, "head": int, "token": int, "position": int, "class": int, "method": str, "request": int,
}  # fmt: skip


@dataclass(frozen=True)
class Probe:
    """One request."""

    kind: Kind
    client: str
    split: Split
    epoch: int | None
    number: int | None
    texts: tuple[str, ...]
    ids: NDArray[np.int64]
    pruned: tuple[tuple[int, int], ...]
    head: tuple[int, int] | None
    token: int | None
    position: int | None
    choice: int | None
    method: str


def probe_of(body: bytes, run: Run) -> Probe:
    """A request as it was sent, checked.

    Raises
    ------
    HTTPException
        Of status 400 if it is not what was expected, 404 if the run has no such split or example.
    """
    given = _fields(body)
    kind = given.get("kind")
    if kind not in KINDS:
        raise HTTPException(400, f"kind is {kind!r}; expected one of {', '.join(KINDS)}.")
    splits = run.splits
    name = given.get("split") or next(iter(splits), "")
    if name not in splits:
        raise HTTPException(404, f"the run holds no split {name!r}; it holds: {', '.join(splits) or 'none'}.")
    split = splits[name]
    texts, number = _texts(given), given.get("id")
    if kind in ("attention", "saliency", "predict", "prune") and (number is None) == (not texts):
        raise HTTPException(400, f"{kind} needs either id, an example of the run, or text, a list of one or two texts.")
    ids = _ids(given.get("ids", []))
    if kind in ("metric", "importance") and not len(ids):
        raise HTTPException(400, f"{kind} needs ids, a list of examples of the run.")
    outside = [i for i in (*ids[:1], *ids[-1:], *([] if number is None else [number])) if not 0 <= i < split.n_examples]
    if outside:
        raise HTTPException(404, f"{name} has no example {outside[0]}; it has {split.n_examples:,}, counted from 0.")
    method = given.get("method") or ""
    if method and method not in METHODS:
        raise HTTPException(400, f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    layer, head = given.get("layer"), given.get("head")
    if (layer is None) != (head is None) or (layer is None and given.get("token") is not None):
        raise HTTPException(400, "layer and head go together, and token needs both.")
    return Probe(
        kind=kind,
        client=given.get("client") or "",
        split=split,
        epoch=given.get("epoch"),
        number=number,
        texts=texts,
        ids=ids,
        pruned=_pairs(given.get("pruned", [])),
        head=None if layer is None or head is None else (layer, head),
        token=given.get("token"),
        position=given.get("position"),
        choice=given.get("class"),
        method=method,
    )


class Prober:
    """Answers requests with the run's models; to be called from the worker's thread only.

    Parameters
    ----------
    run
        Whose checkpoints and examples are taken.
    model
        The folder of a model that is taken where no epoch is named.
    trust_remote_code
        Whether a checkpoint's own code may run.
    """

    def __init__(self, run: Run, model: Path | None, *, trust_remote_code: bool) -> None:
        self._run = run
        self._model, self._trusts = model, trust_remote_code
        self._models: Any = None
        self._attentions: Any = None

    def work(self, probe: Probe) -> Work:
        """What answers a request: a dictionary for JSON, or bytes (see ``framed``)."""
        try:
            answer = yield from self._answer(probe)
        except (IndexError, RuntimeError, ValueError) as error:
            if isinstance(error, T3VisError):
                raise
            raise ProbingError(f"the model cannot be asked this: {type(error).__name__}: {error}") from error
        return answer

    def _answer(self, probe: Probe) -> Work:
        from t3vis.viewer import instances  # torch takes seconds to load

        if probe.kind == "patterns":
            return self._patterns(probe)
        loaded = self._loaded(probe)
        if probe.kind == "metric":
            answer = yield from instances.measured(self._run, probe.split, loaded, probe.ids, probe.pruned)
            return answer
        if probe.kind == "importance":
            answer = yield from instances.weighed(self._run, probe.split, loaded, probe.ids)
            return answer
        asked = (
            instances.of_text(loaded, probe.texts)
            if probe.number is None
            else instances.of_run(self._run, probe.split, loaded, [probe.number])[0]
        )
        if probe.kind == "attention":
            return self._attention(probe, loaded, asked)
        if probe.kind == "predict":
            return instances.predicted(loaded, asked, probe.pruned, probe.position)
        if probe.kind == "prune":
            return instances.compared(loaded, asked, probe.pruned, probe.position)
        return instances.explained(loaded, asked, probe.pruned, probe.position, probe.choice, probe.method or None)

    def _loaded(self, probe: Probe) -> Loaded:
        from t3vis.viewer.models import Models

        if self._models is None:
            self._models = Models(self._model, trust_remote_code=self._trusts)
        found: Loaded = self._models.of(probe.split, probe.epoch)
        return found

    def _attention(self, probe: Probe, loaded: Loaded, asked: Asked) -> bytes:
        from t3vis.viewer.attentions import Attentions, head_of, pictured

        if self._attentions is None:
            self._attentions = Attentions()
        layers = self._attentions.of(loaded, asked.example, probe.pruned)
        if probe.head is None:
            return pictured(loaded, asked.example, layers)
        weights = head_of(layers, probe.head)
        if probe.token is not None:
            if not 0 <= probe.token < len(weights):
                raise HTTPException(404, f"there is no token {probe.token}; the example has {len(weights)}.")
            weights = weights[probe.token]
        return framed({"dtype": "f4", "shape": list(weights.shape)}, weights.float().numpy().astype("<f4").tobytes())

    def _patterns(self, probe: Probe) -> dict[str, Any]:
        from t3vis.analyze_attention import analyzed_attention

        folder = self._model if probe.epoch is None else None
        found = analyzed_attention(
            self._run, probe.split, pass_index=probe.epoch, model=folder, max_examples=N_FOR_PATTERNS
        )
        return described_patterns(found)


def _fields(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except ValueError as error:
        raise HTTPException(400, f"the request is no JSON: {error}.") from error
    if not isinstance(given, dict):
        raise HTTPException(400, "the request is no JSON object.")
    unknown = set(given) - set(_FIELDS)
    if unknown:
        raise HTTPException(400, f"there is no field {sorted(unknown)[0]!r}; known are {', '.join(_FIELDS)}.")
    known = {name: value for name, value in given.items() if value is not None}
    for name, value in known.items():
        if not isinstance(value, _FIELDS[name]) or isinstance(value, bool):
            raise HTTPException(400, f"{name} is {value!r:.80}; expected {_FIELDS[name].__name__}.")
    return known


def _texts(given: dict[str, Any]) -> tuple[str, ...]:
    texts = given.get("text", [])
    if len(texts) > 2 or not all(isinstance(text, str) and len(text) <= MOST_CHARACTERS for text in texts):
        raise HTTPException(400, f"text is to be a list of one or two texts of at most {MOST_CHARACTERS:,} characters.")
    return tuple(texts)


def _ids(given: list[Any]) -> NDArray[np.int64]:
    if not all(type(i) is int and 0 <= i < 2**62 for i in given):
        raise HTTPException(400, "ids is to be a list of whole numbers, 0 or more.")
    return np.unique(np.array(given, np.int64))


def _pairs(given: list[Any]) -> tuple[tuple[int, int], ...]:
    def is_head(pair: Any) -> bool:
        return isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < 2**31 for i in pair)

    if len(given) > MOST_PRUNED or not all(map(is_head, given)):
        raise HTTPException(400, "pruned is to be a list of heads, each [layer, head], both counted from 0.")
    return tuple(sorted({(layer, head) for layer, head in given}))
