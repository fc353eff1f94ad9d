"""What is tried, a file for each group of scenarios; `probe.catalogue` has them all in their order."""
