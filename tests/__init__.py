"""Tests of hotpatchd."""
