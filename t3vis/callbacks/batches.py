"""What a micro-batch says before the model sees it, and which of its rows and tokens are whose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from t3vis.errors import ConfigurationError

_SPANS = ("start_positions", "end_positions")  # as transformers calls the labels of extracted answers


@dataclass(frozen=True)
class Batch:
    """What a micro-batch says before the model sees it.

    ``ids`` has shape (n,), ``labels`` (n, ...), ``mask`` (n, n_tokens) with 1 for tokens that are not padding.
    ``main`` is the model's main input, ``None`` if the batch does not hold it under its usual name. Where the
    examples stand one after another in a single row, ``position_ids`` begin anew with each, and ``lengths`` are
    theirs (see ``split_up``). A ``paired`` batch holds a chosen completion for each id, then a rejected one for each.
    ``shifted``: the label of a position is the token that follows it. ``spans`` holds the first and the last token of
    each gold answer, (n, 2). ``decoder_mask`` is like ``mask``, for the tokens of the decoder.
    """

    ids: Tensor
    labels: Tensor | None
    mask: Tensor | None
    main: Tensor | None
    training: bool
    position_ids: Tensor | None = None
    paired: bool = False
    shifted: bool = False
    spans: Tensor | None = None
    decoder_mask: Tensor | None = None
    lengths: list[int] = field(default_factory=list)

    @property
    def n_choices(self) -> int:
        """Rows that the model sees of each example: of several choices, (n, n_choices, n_tokens), each is one."""
        main = self.main
        is_choices = main is not None and main.dim() == 3 and not main.is_floating_point()
        return main.shape[1] if main is not None and is_choices else 1

    @property
    def n_rows(self) -> int:
        """Rows that the model sees of all examples, but for pairs."""
        return len(self.ids) * self.n_choices

    def split_up(self) -> Batch:
        """The batch with the ``lengths`` of its examples and a mask to match, if they share a row without padding.

        Raises
        ------
        ConfigurationError
            If the row does not hold one sequence for each id.
        """
        if self.mask is not None or self.position_ids is None or self.position_ids.shape[:-1].numel() != 1:
            return self
        starts = (self.position_ids.flatten() == 0).nonzero().flatten()
        if len(starts) != len(self.ids):
            raise ConfigurationError(
                f"a row without padding holds {len(starts)} sequences for {len(self.ids)} examples of the dataset; "
                "packed examples cannot be told apart: turn packing off (padding_free=True may stay), and do not pad "
                "the row (pad_to_multiple_of=None)."
            )
        end = starts.new_tensor([self.position_ids.numel()])
        lengths = torch.cat([starts, end]).diff().tolist()
        ones = [torch.ones(length, dtype=torch.int64, device=starts.device) for length in lengths]
        return replace(self, lengths=lengths, mask=pad_sequence(ones, batch_first=True))

    def own(self, tensor: Tensor, what: str) -> Tensor:
        """What the model returned for each token, as one row for each example or choice: shape (n_rows, n_tokens, ...).

        Of a pair that is the row of the chosen completion.

        Raises
        ------
        ConfigurationError
            If it does not have one row for each example.
        """
        self.check_rows(tensor, what)
        if self.lengths:
            return pad_sequence(list(torch.split(tensor[0], self.lengths)), batch_first=True)
        return tensor[: self.n_rows]

    def check_rows(self, tensor: Tensor, what: str) -> None:
        """Refuse outputs whose rows are not those that the model was given.

        Raises
        ------
        ConfigurationError
            If there are more or fewer.
        """
        if len(tensor) != (1 if self.lengths else self.n_rows * (2 if self.paired else 1)):
            raise wrong_number_of_rows(len(tensor), what, len(self.ids))

    def places(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Which example each token is of, and where it stands in it, by its place in what the model returned."""
        if not self.lengths:
            return rows, columns
        ends = torch.tensor(self.lengths, device=columns.device).cumsum(0)
        example = torch.searchsorted(ends, columns, right=True)
        return example, columns - (ends - ends.new_tensor(self.lengths))[example]


def batch_of(
    ids: Tensor,
    inputs: Mapping[str, Any],
    model: Any,
    label_names: Iterable[str],
    *,
    training: bool,
    paired: bool = False,
    shifted: bool = False,
) -> Batch:
    """The batch of what a model is called with, by transformers' names; labels by the first name that is there."""
    spans = [inputs[name] for name in _SPANS if inputs.get(name) is not None]
    return Batch(
        ids,
        next((inputs[name] for name in label_names if inputs.get(name) is not None), None),
        inputs.get("attention_mask"),
        inputs.get(getattr(model, "main_input_name", "input_ids")),
        training,
        position_ids=inputs.get("position_ids"),
        paired=paired,
        shifted=shifted,
        spans=torch.stack(spans, 1) if len(spans) == len(_SPANS) else None,
        decoder_mask=inputs.get("decoder_attention_mask"),
    )


def wrong_number_of_rows(found: int, what: str, n_examples: int) -> ConfigurationError:
    """The error for outputs that are not one row per example."""
    return ConfigurationError(
        f"the model returned {found} rows of {what} for {n_examples} examples; a collator or model that "
        "changes the number of rows cannot be recorded, because no row could be tied to its example."
    )
