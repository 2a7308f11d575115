"""Benchmarks of hotpatchd: `make bench`."""
