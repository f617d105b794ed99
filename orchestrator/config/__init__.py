"""What a configuration may say, read and checked in milliseconds: pydantic only, no torch, no Ray."""
