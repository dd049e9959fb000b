"""To and from other projects: their checkpoints as runs of ours, and our models as programs without this package"""
