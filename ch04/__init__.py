"""Chapter 4: the GPT model."""
