"""The folder of a run and what is in it: checkpoints, weights, metrics, and the lock of whoever writes it."""
