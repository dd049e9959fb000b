"""What models cost: time, memory, and the bytes that are saved for the backward pass."""

from equilibria.measuring.memory import peak_bytes, saved_bytes

__all__ = ["peak_bytes", "saved_bytes"]
