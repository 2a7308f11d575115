"""Tests of hotpatchd.core."""
