//! Turns an output in the store into a nar in the spool, compressed if that is worth it, reading it
//! once.

use super::{attempt::spool_failure, spool::Spool};
use crate::{
    builders::{Builder, BuilderError},
    core::{
        compression::Compression,
        hash::{Sha256, Sha256Hasher},
        outcome::{BuildFailure, Outcome, SetupFailure},
        store_path::StorePath,
    },
    formats::sample::{self, SAMPLE_BYTES},
    protocol::bulk::OfferedOutput,
    telemetry,
};
use std::io::{self, Write};

/// How hard to compress. 3 is zstd's own default: faster than any link it is for.
const LEVEL: i32 = 3;

/// Why an output could not be packed.
#[derive(Debug, thiserror::Error)]
pub(super) enum PackError {
    /// The store does not have it, though the build succeeded.
    #[error("the output {0} is missing after a successful build")]
    Missing(String),
    /// The store's files are not what the store's record says.
    #[error("{0} is damaged in this machine's store: its nar is not the one that is on record")]
    Damaged(StorePath),
    /// The builder could not read it.
    #[error("the output could not be read")]
    Builder(#[source] Box<BuilderError>),
    /// The spool could not be written.
    #[error("the spool cannot be written")]
    Spool(#[from] io::Error),
}

impl PackError {
    /// Returns what the attempt reports for this error.
    pub(super) fn outcome(self) -> Outcome {
        Outcome::SetupFailed(match self {
            Self::Missing(name) => return Outcome::Failed(BuildFailure::NoOutput(name)),
            Self::Builder(error) => builder_failure(&error),
            Self::Spool(error) => spool_failure(&error),
            error @ Self::Damaged(_) => SetupFailure::Refused(telemetry::chain(&error)),
        })
    }

    fn of_builder(error: BuilderError) -> Self {
        Self::Builder(Box::new(error))
    }
}

/// Returns what an attempt reports when a nar could not be passed to or from a builder.
pub(super) fn builder_failure(error: &BuilderError) -> SetupFailure {
    match error {
        BuilderError::Stream { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            SetupFailure::DiskFull
        }
        error => error.setup_failure(),
    }
}

/// Packs one output. Its file is durable when this returns. Memory does not grow with the size.
pub(super) fn pack(
    builder: &mut dyn Builder,
    spool: &Spool,
    name: &str,
    path: &StorePath,
) -> Result<OfferedOutput, PackError> {
    let info = builder.path_info(path).map_err(PackError::of_builder)?;
    let Some(info) = info else { return Err(PackError::Missing(name.to_owned())) };
    let file = fs_err::File::create(spool.nar_path(path))?;
    let mut nar = Hashing::new(Packing::Undecided { file, begin: Vec::new() });
    builder.dump(path, &mut nar).map_err(PackError::of_builder)?;
    let (packing, nar_hash, nar_bytes) = nar.finish();
    let (compression, file, file_hash, file_bytes) = match packing.decided()? {
        Packing::Zstd(encoder) => {
            let (file, file_hash, file_bytes) = encoder.finish()?.finish();
            (Compression::Zstd, file, file_hash, file_bytes)
        }
        Packing::None(file) | Packing::Undecided { file, .. } => {
            (Compression::None, file, nar_hash, nar_bytes)
        }
    };
    file.sync_all()?;
    if (nar_hash, nar_bytes) != (info.nar_hash, info.nar_bytes) {
        return Err(PackError::Damaged(path.clone()));
    }
    let (name, compression) = (name.to_owned(), compression.word().to_owned());
    Ok(OfferedOutput { name, info, compression, file_bytes, file_hash })
}

/// The file of a nar that is being written, compressed or not as its beginning suggests.
enum Packing {
    /// There is too little of it to tell.
    Undecided {
        file: fs_err::File,
        begin: Vec<u8>,
    },
    Zstd(Box<zstd::Encoder<'static, Hashing<fs_err::File>>>),
    None(fs_err::File),
}

impl Packing {
    /// Decides by what there is.
    fn decided(self) -> io::Result<Self> {
        let Self::Undecided { file, begin } = self else { return Ok(self) };
        let mut decided = match sample::choose(&begin)? {
            Compression::Zstd => {
                Self::Zstd(Box::new(zstd::Encoder::new(Hashing::new(file), LEVEL)?))
            }
            Compression::None => Self::None(file),
        };
        decided.write_all(&begin)?;
        Ok(decided)
    }
}

impl Write for Packing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Undecided { begin, .. } => begin.extend_from_slice(bytes),
            Self::Zstd(encoder) => return encoder.write(bytes),
            Self::None(file) => return file.write(bytes),
        }
        if let Self::Undecided { file, begin } = self
            && begin.len() >= SAMPLE_BYTES
        {
            let (file, begin) = (file.try_clone()?, std::mem::take(begin));
            *self = Self::Undecided { file, begin }.decided()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Undecided { .. } => Ok(()),
            Self::Zstd(encoder) => encoder.flush(),
            Self::None(file) => file.flush(),
        }
    }
}

/// Hashes and counts what is written through it.
struct Hashing<W> {
    sink: W,
    hasher: Sha256Hasher,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(sink: W) -> Self {
        Self { sink, hasher: Sha256Hasher::default(), bytes: 0 }
    }

    fn finish(self) -> (W, Sha256, u64) {
        (self.sink, self.hasher.finish(), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes = self.bytes.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}
