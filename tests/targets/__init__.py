"""Programs for foreign targets: built here, and run where that is possible."""
