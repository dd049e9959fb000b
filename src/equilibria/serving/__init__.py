"""A model behind HTTP: the completions protocol of OpenAI, requests decoded together, a page to try it."""
