"""Chapter 5, beyond the book: more ways to choose the next token."""
