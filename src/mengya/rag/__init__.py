"""Documents that a model answers from: reading them, cutting them into passages, finding passages, citing them."""
