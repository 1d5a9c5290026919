"""ResNets, their precision, and what replaces or averages their parts."""
