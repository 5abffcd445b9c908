"""A laboratory of softmax tables: what each method claims, in the smallest task that can show it."""
