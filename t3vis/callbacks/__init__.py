"""What touches the model and the Trainer: ids into batches, hooks on the forward pass, rows out.

``recorder`` is the callback; ``example_ids``, ``capture``, ``tasks``, ``examples`` and ``provenance`` are what it uses.
"""
