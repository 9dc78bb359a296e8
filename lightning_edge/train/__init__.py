"""Phase 4: each device runs its part of the plan, exchanging messages and sums with the others."""
