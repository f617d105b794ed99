"""Many runs side by side through Ray Tune, single trainings and plans of stages alike."""
