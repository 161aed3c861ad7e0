"""From a torch comparator to a bundle's graphs."""
