"""What condensers share: where images start, how they are augmented and optimised, networks and trajectories to compare with."""
