"""Sweeps: one recipe at every combination of some values, each an ordinary run; scheduling them is left to others."""
