"""What a model may look up: indexes of texts, other retrievers, and their passages in a prompt."""
