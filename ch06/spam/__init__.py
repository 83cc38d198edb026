"""Chapter 6: the bundled data set of text messages, ham and spam."""
