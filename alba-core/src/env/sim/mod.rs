//! The simulated outside: clock, network, disks and tasks driven by a seed.
