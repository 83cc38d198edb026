"""Chapter 5, beyond the book: load a model without needing its memory twice."""
