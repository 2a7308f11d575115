"""Bytes of object files, archives and executables: symbol tables, fingerprints, rewriting."""
