"""vLLM's own servers for rollouts: guarded by a token, started and replaced, their weights loaded from files."""
