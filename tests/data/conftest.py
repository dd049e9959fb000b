"""Settings of the property tests."""

from hypothesis import settings

# A busy machine must not fail a test: an example may take as long as it needs.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
