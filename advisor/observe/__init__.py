"""Model, data and device read into facts: the only reading of the outside world."""
