"""A model behind HTTP: the completions protocol of OpenAI, concurrent requests decoded together, and a page to try it."""
