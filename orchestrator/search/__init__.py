"""Many runs where `raymix run` does one: trials side by side, and the search for where to train."""
