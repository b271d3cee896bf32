"""Tables about trained defenses, beside their robust accuracy."""
