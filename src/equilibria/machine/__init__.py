"""The computer: its processors, memory and devices, and what PyTorch makes of them."""
