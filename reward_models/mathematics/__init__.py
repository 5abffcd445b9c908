"""Mathematical answers: what a response says, whether it equals the reference, and under which protocol."""
