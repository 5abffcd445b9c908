"""Scores by another model, asked over OpenAI's /v1/chat/completions. What it reads is hostile, what it says is checked."""
