"""Chapter 2: from text to batches of token ids."""
