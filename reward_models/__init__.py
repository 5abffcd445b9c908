"""The toolkit's own scorers. Model text is hostile: nothing here evaluates it, and every size is capped."""

CATALOG = {
    "math_answer": "reward_models.math_answer:math_answer",
    "answer_tag": "reward_models.answer_tag:answer_tag",
    "format_tags": "reward_models.format_tags:format_tags",
    "scripted_feedback": "reward_models.scripted_feedback:scripted_feedback",
    "stored_feedback": "reward_models.stored_feedback:stored_feedback",
}
