"""Chapter 3: attention, from a dot product to many heads."""
