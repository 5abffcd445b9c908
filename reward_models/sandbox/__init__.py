"""Running code that nobody has read. Every tier: no network, no files but the interpreter's, no other programs."""
