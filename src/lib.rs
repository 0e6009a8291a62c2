//! Moongate.
