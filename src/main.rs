//! The binary; its parts arrive with their rooms.

fn main() {}
