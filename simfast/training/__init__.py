"""A training run: its story, its step, and what they are made of."""
