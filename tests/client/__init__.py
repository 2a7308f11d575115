"""Tests of the client, against a daemon that the tests play and real programs."""
