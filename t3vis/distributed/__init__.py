"""The analyses on a Dask cluster: the same functions of some examples at a time, which workers read by themselves.

Each takes what its namesake in `t3vis.analysis` takes, with Dask arrays as ``to_dask`` makes them, and a client, and
returns what that returns. One value per example comes back to the client, as it does in memory; a worker holds a block
of examples for each of its threads, and what it was sent of the references.
"""

from t3vis.distributed.heads import head_importance
from t3vis.distributed.logits import data_map, suspected_errors
from t3vis.distributed.states import coordinates, outliers, principal_axes

__all__ = ["coordinates", "data_map", "head_importance", "outliers", "principal_axes", "suspected_errors"]
