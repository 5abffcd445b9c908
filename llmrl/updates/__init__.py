"""Rules by which a batch changes the policy."""
