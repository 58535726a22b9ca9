//! Reads `.drv` files.

use super::{
    ARGUMENTS_MAX, DRV_BYTES_MAX, Derivation, DerivationError, ENVIRONMENT_MAX, INPUTS_MAX,
    OUTPUTS_MAX, Output, SYSTEM_BYTES_MAX, Variable,
};
use crate::core::{
    aterm::Reader,
    store_path::{HASH_PART_LEN, NAME_BYTES_MAX, PathHash, StoreDir, StorePath},
};
use std::{borrow::Cow, cmp::Ordering};

impl<'a> Derivation<'a> {
    /// Reads the bytes of a `.drv` file.
    ///
    /// What is returned is well-formed: it has an output, its paths are in one store, its lists are
    /// sorted without repetitions, and writing it gives the same bytes. Whether its paths are right
    /// is for [`super::verify_path`] and [`Derivation::verify_outputs`] to tell.
    ///
    /// # Errors
    /// When the bytes are not what a daemon writes, exceed a limit, or are a derivation of a kind
    /// that is not supported; the error says which.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DerivationError> {
        if bytes.len() > DRV_BYTES_MAX {
            return Err(DerivationError::TooLarge { bytes: bytes.len() });
        }
        let mut reader = Reader::new(bytes);
        if reader.rest().starts_with(b"DrvWithVersion(") {
            return Err(DerivationError::Dynamic);
        }
        reader.expect("Derive(")?;
        let (outputs, dir) = read_outputs(&mut reader)?;
        reader.expect(",")?;
        let input_derivations = read_input_derivations(&mut reader, &dir)?;
        reader.expect(",")?;
        let mut input_sources = Vec::new();
        let mut order = Ascending::new("input sources");
        read_list(&mut reader, INPUTS_MAX, "input sources", |reader| {
            input_sources.push(read_path(&order.next(reader)?, &dir)?);
            Ok(())
        })?;
        reader.expect(",")?;
        let system = system(&reader.string()?)?;
        reader.expect(",")?;
        let builder = reader.string()?;
        reader.expect(",")?;
        let mut arguments = Vec::new();
        read_list(&mut reader, ARGUMENTS_MAX, "arguments", |reader| {
            arguments.push(reader.string()?);
            Ok(())
        })?;
        reader.expect(",")?;
        let env = read_env(&mut reader)?;
        reader.expect(")")?;
        reader.expect_end()?;
        Ok(Self { outputs, input_derivations, input_sources, system, builder, arguments, env })
    }
}

/// Reads the outputs, and returns them with the store directory they are in.
fn read_outputs(reader: &mut Reader<'_>) -> Result<(Vec<Output>, StoreDir), DerivationError> {
    let mut outputs = Vec::new();
    let mut order = Ascending::new("outputs");
    let mut dir = None;
    read_list(reader, OUTPUTS_MAX, "outputs", |reader| {
        reader.expect("(")?;
        let name = output_name(&order.next(reader)?)?;
        reader.expect(",")?;
        let path = reader.string()?;
        reader.expect(",")?;
        let algorithm = reader.string()?;
        reader.expect(",")?;
        let hash = reader.string()?;
        reader.expect(")")?;
        check_output_kind(&name, &path, &algorithm, &hash)?;
        let (hash_algorithm, hash) = output_hash(&algorithm, &hash)?;
        let path = match &dir {
            None => StorePath::from_bytes(&path)?,
            Some(dir) => read_path(&path, dir)?,
        };
        dir.get_or_insert_with(|| path.dir().clone());
        outputs.push(Output { name, path, hash_algorithm, hash });
        Ok(())
    })?;
    let dir = dir.ok_or(DerivationError::NoOutputs)?;
    let misshapen = |o: &&Output| !o.hash.is_empty() && (outputs.len() > 1 || o.name != "out");
    match outputs.iter().find(misshapen) {
        Some(output) => Err(DerivationError::FixedOutputShape(output.name.clone())),
        None => Ok((outputs, dir)),
    }
}

/// Reads the input derivations with the names of the outputs that are used.
fn read_input_derivations(
    reader: &mut Reader<'_>,
    dir: &StoreDir,
) -> Result<Vec<(StorePath, Vec<String>)>, DerivationError> {
    let mut inputs = Vec::new();
    let mut order = Ascending::new("input derivations");
    read_list(reader, INPUTS_MAX, "input derivations", |reader| {
        reader.expect("(")?;
        let path = read_path(&order.next(reader)?, dir)?;
        if !path.is_derivation() {
            return Err(DerivationError::NotADerivation { path });
        }
        reader.expect(",")?;
        let mut names = Vec::new();
        let mut order = Ascending::new("outputs of an input");
        read_list(reader, OUTPUTS_MAX, "outputs of an input", |reader| {
            names.push(output_name(&order.next(reader)?)?);
            Ok(())
        })?;
        reader.expect(")")?;
        inputs.push((path, names));
        Ok(())
    })?;
    Ok(inputs)
}

/// Reads the environment variables.
fn read_env<'a>(reader: &mut Reader<'a>) -> Result<Vec<Variable<'a>>, DerivationError> {
    let mut env = Vec::new();
    let mut order = Ascending::new("environment variables");
    read_list(reader, ENVIRONMENT_MAX, "environment variables", |reader| {
        reader.expect("(")?;
        let name = order.next(reader)?;
        reader.expect(",")?;
        let value = reader.string()?;
        reader.expect(")")?;
        env.push((name, value));
        Ok(())
    })?;
    Ok(env)
}

/// Reads a list of at most `max` items.
fn read_list<'a>(
    reader: &mut Reader<'a>,
    max: usize,
    what: &'static str,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<(), DerivationError>,
) -> Result<(), DerivationError> {
    let mut room = max;
    reader.list(|reader| {
        room = room.checked_sub(1).ok_or(DerivationError::TooMany { what, max })?;
        item(reader)
    })
}

/// Strings that must come in ascending order, which also means that none comes twice.
struct Ascending<'a> {
    what: &'static str,
    last: Option<Cow<'a, [u8]>>,
}

impl<'a> Ascending<'a> {
    const fn new(what: &'static str) -> Self {
        Self { what, last: None }
    }

    /// Reads the next of the strings.
    fn next(&mut self, reader: &mut Reader<'a>) -> Result<Cow<'a, [u8]>, DerivationError> {
        let at = reader.position();
        let string = reader.string()?;
        if self.last.as_ref().is_some_and(|last| last.cmp(&string) != Ordering::Less) {
            return Err(DerivationError::Order { what: self.what, at });
        }
        self.last = Some(string.clone());
        Ok(string)
    }
}

/// Reads a store path in the directory `dir`.
fn read_path(bytes: &[u8], dir: &StoreDir) -> Result<StorePath, DerivationError> {
    if let Some(path) = read_path_below(bytes, dir) {
        return Ok(path);
    }
    let path = StorePath::from_bytes(bytes)?;
    if path.dir() == dir {
        Ok(path)
    } else {
        Err(DerivationError::OtherStore { path, dir: dir.clone() })
    }
}

/// Reads a store path of a known directory, without examining that directory every time.
fn read_path_below(bytes: &[u8], dir: &StoreDir) -> Option<StorePath> {
    let base = bytes.strip_prefix(dir.as_str().as_bytes())?.strip_prefix(b"/")?;
    let (digits, name) = base.split_at_checked(HASH_PART_LEN)?;
    let name = std::str::from_utf8(name.strip_prefix(b"-")?).ok()?;
    dir.path(PathHash::parse(digits)?, name).ok()
}

/// Checks the name of an output, which becomes part of a store path's name.
fn output_name(bytes: &[u8]) -> Result<String, DerivationError> {
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || b"+-._?=".contains(b);
    match std::str::from_utf8(bytes) {
        Ok(name)
            if !name.is_empty() && name.len() <= NAME_BYTES_MAX && bytes.iter().all(allowed) =>
        {
            Ok(name.to_owned())
        }
        _ => Err(DerivationError::OutputName(excerpt(bytes))),
    }
}

/// Checks the name of a system.
fn system(bytes: &[u8]) -> Result<String, DerivationError> {
    match std::str::from_utf8(bytes) {
        Ok(system)
            if !system.is_empty()
                && system.len() <= SYSTEM_BYTES_MAX
                && bytes.iter().all(u8::is_ascii_graphic) =>
        {
            Ok(system.to_owned())
        }
        _ => Err(DerivationError::System(excerpt(bytes))),
    }
}

/// Refuses outputs whose path is not known before they are built.
fn check_output_kind(
    name: &str,
    path: &[u8],
    algorithm: &[u8],
    hash: &[u8],
) -> Result<(), DerivationError> {
    if hash == b"impure" {
        return Err(DerivationError::Impure(name.to_owned()));
    }
    match (path.is_empty(), algorithm.is_empty(), hash.is_empty()) {
        // A path with an algorithm and no hash is how older Nix wrote floating outputs.
        (_, false, true) => Err(DerivationError::Floating(name.to_owned())),
        (true, true, true) => Err(DerivationError::Deferred(name.to_owned())),
        // What is left without a path has no valid path, which is said later.
        (..) => Ok(()),
    }
}

/// Checks the hash of an output, if it has one.
fn output_hash(algorithm: &[u8], hash: &[u8]) -> Result<(String, String), DerivationError> {
    if algorithm.is_empty() && hash.is_empty() {
        return Ok((String::new(), String::new()));
    }
    let unknown = || DerivationError::HashAlgorithm(excerpt(algorithm));
    let text = std::str::from_utf8(algorithm).map_err(|_| unknown())?;
    let digits = match text.strip_prefix("r:").unwrap_or(text) {
        "md5" => 32,
        "sha1" => 40,
        "sha256" | "sha3-256" | "blake2s-256" | "blake3" => 64,
        "sha512" | "sha3-512" => 128,
        _ => return Err(unknown()),
    };
    let is_digit = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    match std::str::from_utf8(hash) {
        Ok(hash) if hash.len() == digits && hash.as_bytes().iter().all(is_digit) => {
            Ok((text.to_owned(), hash.to_owned()))
        }
        _ => Err(DerivationError::OutputHash { algorithm: text.to_owned(), digits }),
    }
}

/// Returns the beginning of foreign bytes, fit for a message.
fn excerpt(bytes: &[u8]) -> String {
    bytes.iter().take(100).copied().flat_map(std::ascii::escape_default).map(char::from).collect()
}
