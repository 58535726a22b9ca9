//! Signatures over what is known of a path, one module for each dialect of stores.

pub mod guix;
pub mod nix;
pub mod sexp;
