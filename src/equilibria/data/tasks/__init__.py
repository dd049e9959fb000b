"""What a model learns and is measured on: each synthetic task is a frozen dataclass in a module of its own."""
