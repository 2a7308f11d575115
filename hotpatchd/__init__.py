"""hotpatchd: edit a Rust function, save, and the running program executes the new code."""

__version__ = "0.1.0"
