"""Hosts and links on one machine, and the programs that run between them."""
