"""Encoders with class vectors: pre-trained on captions, fine-tuned against attacks, distilled into students."""
