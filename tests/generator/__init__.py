"""Random programs, random edits of them, and a model of what must follow."""
