"""Appendix A, beyond the book: a GPT that reads and writes single characters."""
