"""From labelled photographs to a trained comparator."""
