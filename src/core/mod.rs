//! The rules: what a build is, when it may start, who gets it and what follows when it ends.
//!
//! This room is pure. It knows no files, no sockets, no threads, no clock and no randomness: time
//! and ids come in as values, and what must happen comes out as values. The entry point is
//! [`engine::Engine::step`]; everything else is vocabulary. It is called by the coordinator, and
//! its vocabulary by everyone.

pub mod agent;
pub mod arena;
pub mod aterm;
pub mod attempt;
pub mod audit;
pub mod base32;
pub mod build;
pub mod care;
pub mod change;
pub mod compression;
pub mod content;
pub mod defect;
pub mod demands;
pub mod derivation;
pub mod engine;
pub mod enrollment;
pub mod event;
pub mod graph;
pub mod hash;
pub mod hook;
pub mod id;
pub mod lists;
pub mod outcome;
pub mod path_info;
pub mod plan;
pub mod retry;
pub mod store_path;
pub mod table;
pub mod time;
