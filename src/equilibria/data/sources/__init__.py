"""Where text comes from: each source is a frozen dataclass in a module of its own."""
