"""Measurements whose records the README's tables are made from: accuracy, footprint."""
