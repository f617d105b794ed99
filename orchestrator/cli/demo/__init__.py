"""`raymix demo`: generate a small base model and six domains, then train on them like on a user's own data."""
