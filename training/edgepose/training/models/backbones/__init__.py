"""Feature extractors: from normalised pixels to one stride-4 map."""
