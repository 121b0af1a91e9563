"""From a benchmark's datasets to batches: sources, tables of tensors, and mixing.

Knows no balancing and no Lightning. Importing this package, or `mtlbench.data.names`, loads neither torch nor pandas.
"""
