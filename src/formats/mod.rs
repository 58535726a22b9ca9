//! The file formats of stores: nars, export streams, narinfos, signatures, and the search for
//! references; and the packets in which files are given over SFTP.
//!
//! This room is pure over bytes. It knows no files, no sockets, no clock and no randomness: bytes
//! come in as slices, in any split, and what they mean goes out through sinks and values. Whoever
//! walks file systems, spools or sends does it elsewhere: `builders::tree`, `depot`.
//!
//! What is read here may come from anybody. Every reader has limits, refuses instead of guessing,
//! never panics, and holds no more memory than it was sent.
//!
//! Entry points: [`nar::NarReader`], [`nar::NarWriter`], [`export::ExportReader`],
//! [`narinfo::NarInfo`], [`references::ReferenceScanner`], [`sample::choose`], [`signature`] and
//! [`sftp::Decoder`].
#![warn(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used
)]

pub mod export;
pub mod nar;
pub mod narinfo;
pub mod references;
pub mod sample;
pub mod sftp;
pub mod signature;
mod tokens;
