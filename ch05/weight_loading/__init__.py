"""Chapter 5, beyond the book: more ways for GPT-2's weights to come in."""
