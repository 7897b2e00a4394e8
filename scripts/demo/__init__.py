"""The demo checkpoint's workshop: generated text, tokenizer, training and evaluation.

Nothing in here is needed to serve a model, and nothing in `services/` imports it.
"""
