//! Signatures over what is known of a path, one module for each dialect of stores.

pub mod nix;
