"""The frontend: public API, tokenizer, router and request pipeline. Never torch."""
