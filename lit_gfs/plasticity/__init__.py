"""Changes of weights and updates after an optimizer step that keep a network trainable, without Lightning."""
