"""Tests of hotpatchd.daemon."""
