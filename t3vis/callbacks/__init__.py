"""What touches the model and the Trainer: ids into batches, hooks on the forward pass, rows out.

``recorder`` is the callback; ``example_ids``, ``hooks``, ``batches``, ``capture``, ``tasks``, ``tokens``, ``examples``,
``trainers`` and ``provenance`` are what it uses.
"""
