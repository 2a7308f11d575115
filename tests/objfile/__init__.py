"""Object files, archives and binaries, as real compilers and linkers make them."""
