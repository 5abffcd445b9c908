"""Instructions that a program can check, as IFEval writes them (arXiv:2311.07911)."""
