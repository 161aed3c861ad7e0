"""Anchors: choose them from labelled images, and precompute all that does not depend on the test image."""
