//! What all daemons share at start and stop: arguments, configuration, logs, signals, health.
