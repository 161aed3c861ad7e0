"""The scorer at work: filter a collection, evaluate on labels, report."""
