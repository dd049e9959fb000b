"""Text from the web: published corpora and data sets of the Hugging Face hub, as folders that recipes read."""
