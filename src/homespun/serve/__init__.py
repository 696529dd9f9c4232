"""A model for other programs: the HTTP interface of OpenAI, closed and bounded by default. Needs `homespun[serve]`."""
