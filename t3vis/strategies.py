"""By what examples are selected."""

from typing import Literal

Strategy = Literal[
    "ambiguous", "easy", "hard", "most_correct", "least_correct", "most_forgotten", "least_forgotten", "random"
]
