"""A small GPT of our own, pretrained on public-domain books from Project Gutenberg."""
