"""The run on disk: a Zarr v3 hierarchy that is written while a model trains and read at any time.

``schema`` says what is stored, ``layout`` in which pieces, ``shard`` how a piece is encoded, ``segments`` how rows
in order of arrival become rows in order of example; ``writer``, ``seal`` and ``reader`` use them. Nothing here
imports torch.
"""
