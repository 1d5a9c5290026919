"""Data-parallel training whose gradients are summed in buckets while backward runs."""
