//! What the room `formats` reads and writes, compared with the programs of Nix where they are
//! installed. Each test has a store of its own; no daemon and no network are needed.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
#![expect(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    process::Command,
};
use steading::{
    core::{
        path_info::PathInfo,
        store_path::{StoreDir, StorePath},
    },
    formats::{
        export::{self, ExportLimits, ExportReader, ExportSink, ExportTrailer},
        nar::NarLimits,
        narinfo::{self, NarInfo},
        references::ReferenceScanner,
        signature::nix::{NixPublicKey, NixSecretKey},
    },
};
use tempfile::TempDir;

const LIMITS: ExportLimits = ExportLimits {
    nar: NarLimits { bytes_max: 1 << 30, entries_max: 1 << 20, depth_max: 64 },
    entries_max: 100,
};

/// A store in a temporary directory, with a derivation and its two sources in it.
struct Store {
    root: TempDir,
    /// The derivation and what it refers to, references first.
    paths: Vec<String>,
}

impl Store {
    /// Makes the store, or prints why it cannot.
    fn new() -> Option<Self> {
        if let Err(error) = Command::new("nix-store").arg("--version").output() {
            println!("not compared with Nix, which cannot be run here: {error}");
            return None;
        }
        let root = TempDir::new().unwrap();
        fs_err::create_dir_all(root.path().join("conf")).unwrap();
        fs_err::write(
            root.path().join("conf/nix.conf"),
            "build-users-group =\nsubstituters =\nexperimental-features = nix-command\n",
        )
        .unwrap();
        let mut store = Self { root, paths: Vec::new() };
        let expression = "derivation { name = \"d\"; system = \"x\"; \
            builder = builtins.toFile \"b\" \"x\"; args = [ (builtins.toFile \"c\" \"y\") ]; }";
        let drv = store.text(&["nix-instantiate", "-E", expression]);
        let closure = store.text(&["nix-store", "-qR", drv.trim()]);
        store.paths = closure.lines().map(str::to_owned).collect();
        assert_eq!(store.paths.len(), 3);
        Some(store)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn dir(&self) -> StoreDir {
        self.at("store").to_str().unwrap().parse().unwrap()
    }

    /// Runs a program of Nix on this store.
    fn run(&self, command: &[&str]) -> std::process::Output {
        Command::new(command[0])
            .args(&command[1..])
            .env("NIX_REMOTE", "")
            .env("NIX_STORE_DIR", self.at("store"))
            .env("NIX_STATE_DIR", self.at("state"))
            .env("NIX_LOG_DIR", self.at("log"))
            .env("NIX_CONF_DIR", self.at("conf"))
            .env("HOME", self.at("home"))
            .output()
            .unwrap()
    }

    /// Runs a program that must succeed, and returns what it prints.
    fn bytes(&self, command: &[&str]) -> Vec<u8> {
        let output = self.run(command);
        assert!(output.status.success(), "{command:?}: {}", output.stderr.escape_ascii());
        output.stdout
    }

    fn text(&self, command: &[&str]) -> String {
        String::from_utf8(self.bytes(command)).unwrap()
    }

    /// Exports all paths.
    fn export(&self) -> Vec<u8> {
        let paths = self.paths.iter().map(String::as_str);
        self.bytes(&["nix-store", "--export"].into_iter().chain(paths).collect::<Vec<_>>())
    }

    /// Makes a key with Nix's own program.
    fn key(&self, name: &str) -> (NixSecretKey, NixPublicKey) {
        let (secret, public) = (self.at("secret"), self.at("public"));
        let files = [secret.to_str().unwrap(), public.to_str().unwrap()];
        self.bytes(&["nix-store", "--generate-binary-cache-key", name, files[0], files[1]]);
        let secret = fs_err::read_to_string(secret).unwrap();
        let public = fs_err::read_to_string(public).unwrap();
        let (key, public_key) =
            (NixSecretKey::parse(&secret).unwrap(), NixPublicKey::parse(&public).unwrap());
        assert_eq!(key.to_text(), secret.trim());
        assert_eq!(public_key.to_text(), public.trim());
        (key, public_key)
    }

    /// Copies the derivation into a binary cache signed by the key made before.
    fn cache(&self) -> String {
        let drv = self.paths.last().unwrap();
        let url = format!("file://{}", self.at("cache").display());
        let signed = format!("{url}?secret-key={}&compression=none", self.at("secret").display());
        self.bytes(&["nix", "copy", "--derivation", "--to", &signed, drv]);
        url
    }

    /// Returns the narinfo files of the cache.
    fn narinfos(&self) -> Vec<PathBuf> {
        let files = fs_err::read_dir(self.at("cache")).unwrap().map(|file| file.unwrap().path());
        files.filter(|file| file.extension().is_some_and(|end| end == "narinfo")).collect()
    }
}

/// Gathers what an export stream holds.
#[derive(Default)]
struct Gathered {
    nar: Vec<u8>,
    entries: Vec<(Vec<u8>, ExportTrailer)>,
}

impl ExportSink for Gathered {
    type Error = Infallible;
    fn entry_begin(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
    fn nar(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.nar.extend_from_slice(bytes);
        Ok(())
    }
    fn entry_end(&mut self, trailer: ExportTrailer) -> Result<(), Infallible> {
        self.entries.push((std::mem::take(&mut self.nar), trailer));
        Ok(())
    }
}

fn read(stream: &[u8]) -> Vec<(Vec<u8>, ExportTrailer)> {
    let (mut reader, mut sink) = (ExportReader::new(LIMITS), Gathered::default());
    for piece in stream.chunks(11) {
        reader.feed(piece, &mut sink).unwrap();
    }
    reader.finish::<Infallible>().unwrap();
    sink.entries
}

#[test]
fn an_export_stream_of_nix_is_read_and_written_again() {
    let Some(store) = Store::new() else { return };
    let stream = store.export();
    let entries = read(&stream);
    let paths: Vec<_> = entries.iter().map(|(_, trailer)| trailer.path.to_string()).collect();
    assert_eq!(paths, store.paths);
    let mut written = Vec::new();
    for (nar, trailer) in &entries {
        let hash = store.text(&["nix-store", "-q", "--hash", &trailer.path.to_string()]);
        assert_eq!(trailer.nar_hash.to_string(), hash.trim());
        written.extend_from_slice(&export::entry_begin());
        written.extend_from_slice(nar);
        let ExportTrailer { path, references, deriver, .. } = trailer;
        written.extend(export::entry_trailer(path, references, deriver.as_ref()));
    }
    written.extend_from_slice(&export::stream_end());
    assert!(written == stream);
}

#[test]
fn the_scanner_finds_the_references_that_nix_knows() {
    let Some(store) = Store::new() else { return };
    for (nar, trailer) in read(&store.export()) {
        let all: Vec<StorePath> = store.paths.iter().map(|path| path.parse().unwrap()).collect();
        let mut scanner = ReferenceScanner::new(all.iter().map(StorePath::hash));
        nar.chunks(13).for_each(|piece| scanner.feed(piece));
        let expected = trailer.references.iter().map(StorePath::hash).collect();
        assert_eq!(scanner.take_found(), expected, "{}", trailer.path);
    }
}

#[test]
fn a_narinfo_of_nix_is_read_written_and_signed_the_same() {
    let Some(store) = Store::new() else { return };
    let (key, public) = store.key("farm.example.org-1");
    assert_eq!(key.public(), public);
    store.cache();
    assert_eq!(store.narinfos().len(), 3);
    for file in store.narinfos() {
        let text = fs_err::read_to_string(&file).unwrap();
        let narinfo = NarInfo::parse(&text, &store.dir()).unwrap();
        assert_eq!(narinfo.to_text().unwrap(), text);
        let fingerprint = narinfo::fingerprint(&narinfo.info);
        let [signature] = narinfo.info.signatures.as_slice() else { panic!("{text}") };
        assert!(public.verify(&fingerprint, signature));
        assert_eq!(key.sign(&fingerprint), *signature);
    }
}

#[test]
fn nix_accepts_what_we_signed_and_only_that() {
    let Some(store) = Store::new() else { return };
    store.key("unused-1");
    let url = store.cache();
    let key = NixSecretKey::generate("ours-1", [42; 32]).unwrap();
    let other = NixSecretKey::generate("ours-1", [43; 32]).unwrap();
    for file in store.narinfos() {
        rewrite(&file, &store.dir(), |info| {
            // A path that follows from its content would need no signature.
            info.content_address = None;
            info.signatures = vec![key.sign(&narinfo::fingerprint(info))];
        });
    }
    let verified = |key: &NixSecretKey| {
        let public = key.public().to_text();
        let drv = store.paths.last().unwrap();
        let fixed = ["nix", "store", "verify", "--derivation", "--recursive", "--store", &url];
        let keys = ["--trusted-public-keys", &public, drv];
        store.run(&[&fixed[..], &keys].concat()).status.success()
    };
    assert!(verified(&key));
    assert!(!verified(&other));
}

/// Changes a narinfo file.
fn rewrite(file: &Path, dir: &StoreDir, change: impl FnOnce(&mut PathInfo)) {
    let mut narinfo = NarInfo::parse(&fs_err::read_to_string(file).unwrap(), dir).unwrap();
    change(&mut narinfo.info);
    fs_err::write(file, narinfo.to_text().unwrap()).unwrap();
}
