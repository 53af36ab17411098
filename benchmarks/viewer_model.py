"""What the viewer's server takes to answer with the attention of a long example, beside what the model itself takes.

A BERT of the size of bert-base (12 layers of 12 heads, random weights), an example of 512 tokens, a real server on the
loopback. The model's own part is the same forward pass, with eager attention, of which nothing is read.
"""

from __future__ import annotations

import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from t3vis.probing.encoded import encoded, stacked
from t3vis.probing.model import forward, load_model, probed, use_attention
from t3vis.store.reader import Run
from t3vis.viewer.app import make_app
from t3vis.viewer.serve import HOST, listening

N_TOKENS = 512
TOKEN = "benchmark"


def measured(run: Run, *, rounds: int = 5) -> dict[str, float]:
    """Medians, seconds: ``pictures`` of all heads, of which ``forward`` is the model's, ``ours`` the rest; a ``row``.

    Parameters
    ----------
    run
        Any; only its server is asked, about a text.
    rounds
        Each asks about a text that was not asked about before.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        _write_model(folder)
        with _serving(run, folder) as port:
            seconds: dict[str, list[float]] = {"pictures": [], "forward": [], "row": []}
            model = load_model(folder)
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            _ask(port, kind="attention", text=[_text(rounds)])  # loads the model
            for number in range(rounds):
                text = _text(number)
                taken, answer = _ask(port, kind="attention", text=[text])
                assert json.loads(answer[4 : 4 + int.from_bytes(answer[:4], "little")])["layers"][0]["of"] == [512, 512]
                seconds["pictures"].append(taken)
                seconds["forward"].append(_forward(model, tokenizer, text))
                for token in range(5):
                    taken, row = _ask(port, kind="attention", text=[text], layer=3, head=7, token=100 + token)
                    assert len(row) - 4 - int.from_bytes(row[:4], "little") == 4 * N_TOKENS
                    seconds["row"].append(taken)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    ours = [whole - own for whole, own in zip(seconds["pictures"], seconds["forward"], strict=True)]
    return {**found, "ours": statistics.median(ours)}


def _forward(model: Any, tokenizer: Any, text: str) -> float:
    inputs = stacked([encoded(tokenizer, text)], pad_id=0)
    with probed(model), torch.inference_mode():
        use_attention(model, "eager")
        start = time.perf_counter()
        forward(model, inputs)
        return time.perf_counter() - start


def _write_model(folder: Path) -> None:
    words = {f"w{i}": i for i in range(2000)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    saved: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=N_TOKENS)  # type: ignore[no-untyped-call]
    saved.save_pretrained(folder)
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(vocab_size=len(words))).save_pretrained(folder)


def _text(seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(f"w{i}" for i in torch.randint(1, 2000, (N_TOKENS,), generator=generator).tolist())


@contextmanager
def _serving(run: Run, model: Path) -> Iterator[int]:
    socket = listening(0)
    server = uvicorn.Server(uvicorn.Config(make_app(run, token=TOKEN, model=model), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        yield socket.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        socket.close()


def _ask(port: int, **what: Any) -> tuple[float, bytes]:
    connection = http.client.HTTPConnection(HOST, port, timeout=120)
    start = time.perf_counter()
    connection.request("POST", "/api/v1/probe", json.dumps(what), {"Authorization": f"Bearer {TOKEN}"})
    answer = connection.getresponse()
    body = answer.read()
    taken = time.perf_counter() - start
    connection.close()
    assert answer.status == 200, body
    return taken, body
