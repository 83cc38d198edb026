"""Chapter 5, beyond the book: new tokens for a tokenizer and its model."""
