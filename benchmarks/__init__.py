"""Measurements of speed and memory, against other libraries on the same weights; see README.md."""
