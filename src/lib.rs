#![doc = include_str!("README.md")]

pub mod agent;
pub mod builders;
pub mod commands;
pub mod config;
pub mod coordinator;
pub mod core;
pub mod demo;
pub mod depot;
pub mod formats;
pub mod logbook;
pub mod protocol;
#[cfg(feature = "sim")]
pub mod sim;
pub mod ssh;
pub mod store;
pub mod telemetry;
