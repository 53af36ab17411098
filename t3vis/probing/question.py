"""A question put to a live model: how these numbers of its output depend on the embeddings of these tokens.

The embeddings are replaced where the model looks them up, not passed as ``inputs_embeds``: so token ids, mask and
positions stay what they are, also in decoders that find their last token by its id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from t3vis.errors import ProbingError
from t3vis.probing.encoded import Encoded, stacked
from t3vis.probing.model import device_of, forward
from t3vis.probing.targets import Target, checked, numbers_of, probs_of

Baseline = Literal["mask", "mean", "pad"]

_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Question:
    """A batch of examples and what of the output is asked for each. The model is to be probed (`probed`).

    Parameters
    ----------
    model
        With a head; its input embedding is found by itself.
    examples, targets
        As many of each.
    mask_id, pad_id
        Token ids; ``None`` where there is none.
    """

    model: Any
    examples: tuple[Encoded, ...]
    targets: tuple[Target, ...]
    mask_id: int | None = None
    pad_id: int | None = None

    def __post_init__(self) -> None:
        checked(self.targets, [_n_read(example) for example in self.examples])

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is called with, shapes (n, n_tokens)."""
        return stacked(self.examples, pad_id=self.pad_id or 0, device=device_of(self.model))

    @property
    def n_numbers(self) -> int:
        """Numbers that are explained of each example."""
        return len(self.targets[0])

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each example, shape (n,)."""
        return torch.tensor([len(example) for example in self.examples], device=device_of(self.model))

    @cached_property
    def is_token(self) -> Tensor:
        """Shape (n, n_tokens): what is not padding."""
        n_tokens = self.inputs["input_ids"].shape[1]
        return torch.arange(n_tokens, device=self.lengths.device) < self.lengths[:, None]

    @cached_property
    def is_content(self) -> Tensor:
        """Shape (n, n_tokens): neither padding nor a special token such as [CLS]."""
        out = self.is_token.clone()
        for row, example in zip(out, self.examples, strict=True):
            row[: len(example)] &= ~torch.from_numpy(example.is_special).to(row.device)
        return out

    @cached_property
    def embeddings(self) -> Tensor:
        """What the tokens are looked up as, shape (n, n_tokens, hidden)."""
        return self._embedded(self.inputs["input_ids"])

    @cached_property
    def embedding(self) -> nn.Module:
        """The module that looks tokens up; of the encoder, where there are two stacks."""
        has_encoder = getattr(self.model.config, "is_encoder_decoder", False)
        try:
            found = (self.model.get_encoder() if has_encoder else self.model).get_input_embeddings()
        except (AttributeError, NotImplementedError) as error:
            raise ProbingError(f"{type(self.model).__name__} has no input embedding: {error}.") from error
        if not isinstance(getattr(found, "weight", None), Tensor) or found.weight.dim() != 2:
            raise ProbingError(
                f"{type(self.model).__name__} does not look up tokens; only models of text are explained."
            )
        module: nn.Module = found
        return module

    def baseline(self, kind: Baseline | None = None) -> Tensor:
        """The embedding that stands for no token, shape (hidden,).

        Parameters
        ----------
        kind
            ``mask`` is that of the mask token, ``pad`` of the padding token, ``mean`` the mean over the vocabulary; by
            default ``mask`` where there is such a token, else ``mean``.

        Raises
        ------
        ProbingError
            If there is no such token.
        """
        kind = kind or ("mean" if self.mask_id is None else "mask")
        if kind == "mean":
            n_tokens = self.embedding.get_parameter("weight").shape[0]
            ids = torch.arange(n_tokens, device=self.lengths.device)
            sums = [self._embedded(ids[None, i : i + _CHUNK])[0].sum(0) for i in range(0, n_tokens, _CHUNK)]
            return torch.stack(sums).sum(0) / n_tokens
        found = self.mask_id if kind == "mask" else self.pad_id
        if found is None:
            raise ProbingError(f"there is no {kind} token; choose another baseline, such as 'mean'.")
        return self._embedded(torch.tensor([[found]], device=self.lengths.device))[0, 0]

    def without(self, removed: Tensor, baseline: Tensor) -> Tensor:
        """Embeddings with the baseline in place of some tokens.

        Parameters
        ----------
        removed
            Shape (n, n_tokens), bool.
        baseline
            Shape (hidden,).
        """
        return torch.where(removed[..., None], baseline, self.embeddings)

    def outputs(self, embeddings: Tensor | None = None, **more: Any) -> Any:
        """Run the model on these embeddings, by default the tokens' own."""
        if embeddings is None:
            return forward(self.model, self.inputs, **more)
        with self._replaced(embeddings):
            return forward(self.model, self.inputs, **more)

    def numbers(self, embeddings: Tensor | None = None) -> Tensor:
        """The explained numbers, shape (n, n_numbers)."""
        return self.numbers_of(self.outputs(embeddings))

    def numbers_of(self, outputs: Any) -> Tensor:
        """Pick the explained numbers from outputs of the model, shape (n, n_numbers)."""
        return numbers_of(outputs, self.targets)

    def probs(self, embeddings: Tensor | None = None) -> Tensor:
        """How much the model believes in each, shape (n, n_numbers): see `probs_of`."""
        several = getattr(self.model.config, "problem_type", None) == "multi_label_classification"
        with torch.no_grad():
            return probs_of(self.outputs(embeddings), self.targets, self.lengths.tolist(), each_by_itself=several)

    def gradients(self, embeddings: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The explained numbers, shape (n, n_numbers), and their gradients, (n, n_numbers, n_tokens, hidden)."""
        x = (self.embeddings if embeddings is None else embeddings).detach().requires_grad_()
        with torch.enable_grad():
            numbers = self.numbers(x)
        found = list(self.backward(numbers, x))
        return numbers.detach(), torch.stack(found, 1)

    def backward(self, numbers: Tensor, x: Tensor) -> Iterator[Tensor]:
        """The gradient of each number in turn, shape (n, n_tokens, hidden)."""
        for k in range(self.n_numbers):
            (found,) = torch.autograd.grad(numbers[:, k].sum(), x, retain_graph=k + 1 < self.n_numbers)
            yield found

    def take(self, rows: Sequence[int]) -> Question:
        """The question for some of the examples, which may stand there more than once; padded as here."""
        taken = replace(
            self, examples=tuple(self.examples[i] for i in rows), targets=tuple(self.targets[i] for i in rows)
        )
        index = torch.tensor(rows, device=self.lengths.device)
        taken.__dict__["inputs"] = {name: values[index] for name, values in self.inputs.items()}
        taken.__dict__["embeddings"] = self.embeddings[index]
        return taken

    def _embedded(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            found = self.embedding(ids)
        if not isinstance(found, Tensor) or found.shape[:2] != ids.shape:
            raise ProbingError(f"{type(self.embedding).__name__} does not give one embedding for each token.")
        return found

    @contextmanager
    def _replaced(self, embeddings: Tensor) -> Iterator[None]:
        """The first look-up of a forward pass gives these embeddings; a decoder that shares the module has its own."""
        n_calls = 0

        def give(_: nn.Module, __: Any, found: Tensor) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            return embeddings if n_calls == 1 else found

        handle = self.embedding.register_forward_hook(give)
        try:
            yield
        finally:
            handle.remove()
        if not n_calls:
            raise ProbingError(f"{type(self.model).__name__} did not look its tokens up in its input embedding.")


def _n_read(example: Encoded) -> int:
    """Tokens of an example where outputs can be read: those of the decoder, if it is given any."""
    decoded = example.inputs.get("decoder_input_ids")
    return len(example) if decoded is None else len(decoded)
