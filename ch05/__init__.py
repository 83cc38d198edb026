"""Chapter 5: pretraining, checkpoints, generation."""
