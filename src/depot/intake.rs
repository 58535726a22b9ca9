//! Export streams: derivations and sources that somebody submits.
//!
//! Whatever comes is verified before it is known: a derivation by its text and its outputs, a
//! source by its content. What is verified is handed out while the stream goes on, so that a
//! stream of any length needs little memory; until the stream has ended well it only means that
//! these things exist, not that anybody asked for them.

mod derivations;
mod error;

pub use error::IntakeError;

use super::{
    Depot, Fault,
    aside::Aside,
    content::{address_of_file, address_of_nar, flat_hash},
    spool::{Compressed, NarCompressor, SmallNarCompressor},
};
use crate::{
    core::{
        change::{Change, DerivationRecord, NarOrigin, NarRecord},
        derivation::{DRV_BYTES_MAX, DerivationError},
        hash::Sha256,
        path_info::PathInfo,
        store_path::StorePath,
        time::Timestamp,
    },
    formats::{
        export::{ExportLimits, ExportReader, ExportSink, ExportTrailer},
        nar::{NarError, NarLimits, NarReader, NarSink, Regular},
        signature::guix::GuixPublicKey,
    },
};
use derivations::Derivations;
use std::{collections::HashMap, error::Error, io, sync::Arc};

/// The longest nar that is held in memory until its path is known, in bytes. Most sources are
/// patches and scripts; and one that turns out to be held is then never written.
const NAR_IN_MEMORY_BYTES_MAX: usize = 1024 * 1024;
/// The same for what looks like a derivation: the longest one that is read, and what a nar adds.
const DERIVATION_NAR_BYTES_MAX: usize = DRV_BYTES_MAX + 4096;
/// How much of a longer nar is handed at a time to the thread that compresses it, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// Where the content begins in the nar of a file that is not executable.
const CONTENT_AT: usize = 96;
/// How the text of every derivation begins.
const DERIVATION_BEGIN: &[u8] = b"Derive(";

/// What was known before the stream, as the caller finds it in the database.
pub trait Known {
    /// Returns the hash modulo of a derivation, if the derivation is known.
    ///
    /// # Errors
    /// When it cannot be looked up; the stream is given up then.
    fn modulo(&self, path: &StorePath) -> Result<Option<Sha256>, Box<dyn Error + Send + Sync>>;

    /// Returns the hash and the length of the nar that is held of a path, if one is.
    ///
    /// # Errors
    /// When it cannot be looked up; the stream is given up then.
    fn nar(&self, path: &StorePath) -> Result<Option<(Sha256, u64)>, Box<dyn Error + Send + Sync>>;
}

/// How a stream is taken.
#[derive(Debug, Clone, Copy)]
pub struct IntakeRules<'a> {
    /// Whether outputs that nobody can verify are taken on the sender's word.
    pub trusted_import: bool,
    /// Whose word they are taken on, too, when it is signed.
    pub authorized: &'a [GuixPublicKey],
    /// What the stream may ask.
    pub limits: ExportLimits,
    /// When it is received.
    pub at: Timestamp,
}

/// Something verified that came in a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// A derivation; everything it uses was handed out before it or is known.
    Derivation(Arc<DerivationRecord>),
    /// A nar, whose file is durable after [`Depot::sync_nars`].
    Nar(Arc<NarRecord>),
}

impl From<Fact> for Change {
    fn from(fact: Fact) -> Self {
        match fact {
            Fact::Derivation(record) => Self::Derivation(record),
            Fact::Nar(record) => Self::Nar(record),
        }
    }
}

/// How much of a stream was new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IntakeCounts {
    /// Derivations that were not known.
    pub derivations: u64,
    /// Derivations that were known.
    pub derivations_known: u64,
    /// Nars that were not held.
    pub nars: u64,
    /// Nars that were held.
    pub nars_held: u64,
}

/// What a whole stream held.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct IntakeSummary {
    /// All derivations in the stream, each once, in its order.
    pub named: Vec<StorePath>,
    /// Those of them that no other derivation in the stream uses.
    pub roots: Vec<StorePath>,
    /// How much was new.
    pub counts: IntakeCounts,
    /// Sources of its derivations that are neither in the stream nor held: an agent must have them
    /// or substitute them. Sorted.
    pub sources_not_held: Vec<StorePath>,
    /// What [`Intake::take_ready`] was not asked for yet.
    pub ready: Vec<Fact>,
}

/// Takes one export stream.
pub struct Intake<'a> {
    /// Gone when the stream was refused.
    reader: Option<ExportReader>,
    desk: Desk<'a>,
}

impl Depot {
    /// Begins to take an export stream.
    ///
    /// # Errors
    /// [`IntakeError::Fault`] when there is no memory to compress with.
    pub fn intake<'a>(
        &self,
        known: &'a dyn Known,
        rules: IntakeRules<'a>,
    ) -> Result<Intake<'a>, IntakeError> {
        let desk = Desk {
            depot: self.clone(),
            known,
            rules,
            entry: Entry::InMemory(Vec::new()),
            small: SmallNarCompressor::new()?,
            derivations: Derivations::new(known, rules.at),
            nars: HashMap::new(),
            counts: IntakeCounts::default(),
            ready: Vec::new(),
        };
        Ok(Intake { reader: Some(ExportReader::new(rules.limits)), desk })
    }
}

impl Intake<'_> {
    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// An [`IntakeError`]; the stream is refused and the intake of no use then. What was handed
    /// out before stays true.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), IntakeError> {
        let reader = self.reader.as_mut().ok_or(IntakeError::Over)?;
        reader.feed(bytes, &mut self.desk).map_err(|error| {
            self.reader = None;
            error.into()
        })
    }

    /// Returns what was verified since the last call. Call it after each piece that is fed, so
    /// that nothing piles up.
    pub fn take_ready(&mut self) -> Vec<Fact> {
        std::mem::take(&mut self.desk.ready)
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// An [`IntakeError`] when the stream is not complete, or lacks a derivation that it needs.
    pub fn finish(self) -> Result<IntakeSummary, IntakeError> {
        self.reader.ok_or(IntakeError::Over)?.finish::<IntakeError>()?;
        let Desk { derivations, nars, mut counts, ready, .. } = self.desk;
        let graph = derivations.finish(&nars)?;
        counts.derivations = graph.new;
        counts.derivations_known = graph.named.len() as u64 - graph.new;
        Ok(IntakeSummary {
            named: graph.named,
            roots: graph.roots,
            counts,
            sources_not_held: graph.sources_not_held,
            ready,
        })
    }
}

/// Where entries are dealt with.
struct Desk<'a> {
    depot: Depot,
    known: &'a dyn Known,
    rules: IntakeRules<'a>,
    entry: Entry,
    small: SmallNarCompressor,
    derivations: Derivations<'a>,
    /// The nars in the stream so far, with their hashes.
    nars: HashMap<StorePath, Sha256>,
    counts: IntakeCounts,
    ready: Vec<Fact>,
}

/// The nar of the entry that is being read; its path comes behind it.
enum Entry {
    InMemory(Vec<u8>),
    OnDisk(Compressing),
}

/// A nar that is compressed by a thread beside the one that reads the stream.
struct Compressing {
    thread: Aside<Vec<u8>, NarCompressor, io::Error>,
    /// What was not handed over yet.
    piece: Vec<u8>,
}

impl Compressing {
    fn start(depot: &Depot, begin: Vec<u8>) -> io::Result<Self> {
        let feed = |compressor: &mut NarCompressor, piece: Vec<u8>| compressor.feed(&piece);
        let thread = Aside::start(NarCompressor::new(depot, &begin)?, feed)?;
        thread.give(begin);
        Ok(Self { thread, piece: Vec::with_capacity(PIECE_BYTES) })
    }

    /// Takes the next bytes. Returns whether all went well so far.
    fn feed(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let room = PIECE_BYTES - self.piece.len();
            let (fitting, rest) = bytes.split_at(room.min(bytes.len()));
            self.piece.extend_from_slice(fitting);
            bytes = rest;
            if self.piece.len() == PIECE_BYTES {
                let next = Vec::with_capacity(PIECE_BYTES);
                if !self.thread.give(std::mem::replace(&mut self.piece, next)) {
                    return false;
                }
            }
        }
        true
    }

    /// Waits for the file, or for what went wrong. `nar_hash` is the hash of all that came.
    fn finish(self, nar_hash: Sha256) -> io::Result<Compressed> {
        self.thread.give(self.piece);
        self.thread.finish()?.finish(nar_hash)
    }
}

impl ExportSink for Desk<'_> {
    type Error = IntakeError;

    fn entry_begin(&mut self) -> Result<(), IntakeError> {
        match &mut self.entry {
            // The memory serves one entry after the other.
            Entry::InMemory(nar) => {
                nar.clear();
                nar.shrink_to(NAR_IN_MEMORY_BYTES_MAX);
            }
            Entry::OnDisk(_) => self.entry = Entry::InMemory(Vec::new()),
        }
        Ok(())
    }

    fn nar(&mut self, bytes: &[u8]) -> Result<(), IntakeError> {
        match &mut self.entry {
            Entry::InMemory(nar) => {
                nar.extend_from_slice(bytes);
                if nar.len() > in_memory_max(nar) {
                    let begin = std::mem::take(nar);
                    self.entry = Entry::OnDisk(Compressing::start(&self.depot, begin)?);
                }
            }
            Entry::OnDisk(compressing) => {
                if !compressing.feed(bytes)
                    && let Entry::OnDisk(failed) =
                        std::mem::replace(&mut self.entry, Entry::InMemory(Vec::new()))
                {
                    failed.thread.finish()?;
                    return Err(IntakeError::Over);
                }
            }
        }
        Ok(())
    }

    fn entry_end(&mut self, trailer: ExportTrailer) -> Result<(), IntakeError> {
        if trailer.path.is_derivation() { self.derivation(&trailer) } else { self.other(trailer) }
    }
}

impl Desk<'_> {
    /// Deals with a path that ends in `.drv`.
    fn derivation(&mut self, trailer: &ExportTrailer) -> Result<(), IntakeError> {
        let path = &trailer.path;
        let Entry::InMemory(nar) = &self.entry else {
            let bytes = usize::try_from(trailer.nar_bytes).unwrap_or(usize::MAX);
            let source = Box::new(DerivationError::TooLarge { bytes });
            return Err(IntakeError::Derivation { path: path.clone(), source });
        };
        let text = plain_file(nar).ok_or_else(|| IntakeError::NotAFile(path.clone()))?;
        let verified = self.derivations.admit(path, text.into())?;
        self.ready.extend(verified.into_iter().map(Fact::Derivation));
        Ok(())
    }

    /// Deals with a source or an output.
    fn other(&mut self, trailer: ExportTrailer) -> Result<(), IntakeError> {
        let is_vouched_for = self.is_vouched_for(&trailer);
        let ExportTrailer { path, references, deriver, nar_hash, nar_bytes, .. } = trailer;
        let held = match self.nars.get(&path) {
            Some(hash) => Some(*hash),
            None => self.known.nar(&path).map_err(Fault::Known)?.map(|(hash, _)| hash),
        };
        if let Some(held) = held {
            if held != nar_hash {
                return Err(IntakeError::Differs(path));
            }
            if self.nars.insert(path, nar_hash).is_none() {
                self.counts.nars_held += 1;
            }
            return Ok(());
        }
        let entry = std::mem::replace(&mut self.entry, Entry::InMemory(Vec::new()));
        let mut content_address = address_of_nar(&path, &references, &nar_hash);
        // Few are addressed by their files, so those of the others are not hashed.
        let by_file = |flat: Option<Sha256>| address_of_file(&path, &references, &flat?);
        let compressed = match entry {
            Entry::InMemory(nar) => {
                if content_address.is_none() {
                    content_address = by_file(flat_hash(&nar[..])?);
                }
                Pending::InMemory(nar)
            }
            Entry::OnDisk(compressing) => {
                let compressed = compressing.finish(nar_hash)?;
                if content_address.is_none() {
                    content_address = by_file(flat_hash(compressed.file.nar()?)?);
                }
                Pending::OnDisk(compressed)
            }
        };
        let origin = match &content_address {
            Some(_) => NarOrigin::ContentAddressed,
            None if self.rules.trusted_import || is_vouched_for => NarOrigin::Trusted,
            None => return Err(IntakeError::Unverifiable(path)),
        };
        let Compressed { file, file_hash, file_bytes } = match compressed {
            Pending::InMemory(nar) => self.small.compress(&self.depot, &nar)?,
            Pending::OnDisk(compressed) => compressed,
        };
        file.settle(&self.depot, &file_hash)?;
        self.derivations.uses_sources(references.iter().filter(|reference| **reference != path));
        // What a verified content was made by is hearsay all the same.
        let deriver = deriver.filter(|_| origin == NarOrigin::Trusted);
        let mut info = PathInfo {
            path: path.clone(),
            nar_hash,
            nar_bytes,
            references,
            deriver,
            signatures: Vec::new(),
            content_address,
        };
        self.depot.sign(&mut info);
        let record = NarRecord { info, file_hash, file_bytes, origin, at: self.rules.at };
        self.nars.insert(path, nar_hash);
        self.counts.nars += 1;
        self.ready.push(Fact::Nar(Arc::new(record)));
        Ok(())
    }
}

impl Desk<'_> {
    /// Tells whether an entry bears a signature of somebody who is believed.
    fn is_vouched_for(&self, trailer: &ExportTrailer) -> bool {
        trailer.signature.as_deref().is_some_and(|signature| {
            self.rules.authorized.iter().any(|key| key.verify(&trailer.signed_hash, signature))
        })
    }
}

/// A nar that is still to be compressed, or was.
enum Pending {
    InMemory(Vec<u8>),
    OnDisk(Compressed),
}

/// Returns how long this nar may become before it goes to the disk.
fn in_memory_max(nar: &[u8]) -> usize {
    match nar.get(CONTENT_AT..CONTENT_AT + DERIVATION_BEGIN.len()) {
        Some(DERIVATION_BEGIN) => DERIVATION_NAR_BYTES_MAX,
        Some(_) | None => NAR_IN_MEMORY_BYTES_MAX,
    }
}

/// Returns the content of the one file, not executable, that a valid nar holds.
fn plain_file(nar: &[u8]) -> Option<Vec<u8>> {
    #[derive(Default)]
    struct Content(Option<Vec<u8>>);
    impl NarSink for Content {
        fn regular(&mut self, head: Regular) -> Result<(), NarError> {
            self.0 = (!head.executable).then(Vec::new);
            Ok(())
        }
        fn content(&mut self, bytes: &[u8]) -> Result<(), NarError> {
            self.0.iter_mut().for_each(|content| content.extend_from_slice(bytes));
            Ok(())
        }
    }
    let mut content = Content::default();
    let limits = NarLimits { bytes_max: u64::MAX, entries_max: 0, depth_max: 0 };
    NarReader::new(limits).feed(nar, &mut content).ok()?;
    content.0
}
