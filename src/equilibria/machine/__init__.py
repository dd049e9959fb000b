"""The computer: what it is, whether what training rests on works there, and what a run will cost on it."""
