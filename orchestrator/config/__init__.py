"""What a configuration may say, read and checked in milliseconds: no torch, no Ray."""
