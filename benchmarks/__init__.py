"""compare2score-edge."""
