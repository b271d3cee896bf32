"""What a distillation of a language model is made of: divergences, texts to train on, and terms beside them."""
