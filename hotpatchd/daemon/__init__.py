"""The shell around the core: watches files, runs compilers and linkers, talks to clients."""
