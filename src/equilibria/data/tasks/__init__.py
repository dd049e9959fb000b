"""What a model learns and is measured on; the frozen dataclasses of these modules are kinds of tasks."""
