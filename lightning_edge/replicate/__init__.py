"""Phase 3: who holds which part of the model."""
