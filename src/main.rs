//! Moongate.
fn main() {}
