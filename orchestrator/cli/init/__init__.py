"""`raymix init`: inspect the user's data files and write a first configuration for them."""
