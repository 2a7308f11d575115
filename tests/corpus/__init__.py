"""Edits of real shapes, each with the one outcome that is allowed."""
