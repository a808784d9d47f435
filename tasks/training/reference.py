"""reference.npy: what a reference model thinks of each document of a token file."""

REFERENCE = "reference.npy"
