"""Input transforms: stages that a defense puts in front of a model."""
