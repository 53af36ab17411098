"""Small language models for the benchmarks of probing, trained once on tiny Shakespeare by letters, then kept."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from fine_tuned import CACHE

CONTEXT, BATCH_SIZE, N_STEPS, RATE = 64, 16, 500, 3e-3
CONFIGS: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 8, "n_positions": CONTEXT},
    "llama": {
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": CONTEXT,
    },
}


def letters(data: Path) -> list[int]:
    """The text as numbers of letters."""
    text = (data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    numbers = {letter: number for number, letter in enumerate(sorted(set(text)))}
    return [numbers[letter] for letter in text]


def held_out(data: Path, n_examples: int) -> list[dict[str, Any]]:
    """Passages of the last tenth of the text, evenly spaced; each letter is to be predicted from those before it."""
    text = letters(data)
    start = len(text) * 9 // 10
    step = (len(text) - start - CONTEXT) // n_examples
    passages = [text[start + i * step : start + i * step + CONTEXT] for i in range(n_examples)]
    return [{"input_ids": passage, "labels": passage} for passage in passages]


def on_shakespeare(data: Path, kind: str) -> Any:
    """A ``gpt2`` or ``llama`` trained on the first nine tenths of the text, in eval mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = CACHE / f"{kind}-shakespeare-{N_STEPS}"
    if folder.exists():
        kept: Any = AutoModelForCausalLM.from_pretrained(folder)
        return kept.eval()
    text = torch.tensor(letters(data))
    text = text[: len(text) * 9 // 10]
    torch.manual_seed(0)
    ids = {"vocab_size": int(text.max()) + 1, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(kind, **ids, **CONFIGS[kind])
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=N_STEPS)
    model.train()
    for _ in range(N_STEPS):
        starts = torch.randint(len(text) - CONTEXT, (BATCH_SIZE, 1))
        batch = text[starts + torch.arange(CONTEXT)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
        model.save_pretrained(Path(unfinished) / "model")
        if not folder.exists():
            (Path(unfinished) / "model").rename(folder)
    return model.eval()
