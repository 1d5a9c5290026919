"""The backend "hier" of torch.distributed: compiled or loaded, and connected."""
