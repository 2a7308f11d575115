"""End-to-end tests: a real daemon, real compilers, real running programs."""
