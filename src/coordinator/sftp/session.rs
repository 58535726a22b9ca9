//! One client's handles, and the answer to each of its requests.

use super::tree::{Listing, OpenFile, Tree};
use crate::formats::sftp::{
    Asked, HANDLE_BYTES, Request,
    answer::{self, Named, Status},
};
use bytes::Bytes;
use std::{
    collections::HashMap,
    io::{self, ErrorKind},
};

/// How many handles one client has at once; `sftp -r` needs one for each folder on its way down.
const HANDLES_MAX: usize = 64;
/// How many names one answer has.
const NAMES_MAX: usize = 100;

/// What a handle stands for.
#[derive(Debug)]
enum Handle {
    File(OpenFile),
    Directory(Listing),
}

/// One client.
#[derive(Debug)]
pub(super) struct Session {
    tree: Tree,
    handles: HashMap<[u8; HANDLE_BYTES], Handle>,
    /// The number of the next handle; numbers come again after four thousand million.
    next: u32,
}

impl Session {
    pub(super) fn new(tree: Tree) -> Self {
        Self { tree, handles: HashMap::new(), next: 0 }
    }

    /// Returns the answer to a request.
    pub(super) fn answer(&mut self, request: &Request) -> Bytes {
        let id = request.id;
        match self.try_answer(id, &request.asked) {
            Ok(answer) => answer,
            Err(error) => {
                let (status, text) = explained(&error);
                answer::status(id, status, text)
            }
        }
    }

    fn try_answer(&mut self, id: u32, asked: &Asked) -> io::Result<Bytes> {
        Ok(match asked {
            Asked::Version => answer::version(),
            Asked::Open(path) => {
                let file = self.tree.open_file(path)?;
                answer::handle(id, &self.keep(Handle::File(file))?)
            }
            Asked::OpenDir(path) => {
                let listing = self.tree.list(path)?;
                answer::handle(id, &self.keep(Handle::Directory(listing))?)
            }
            Asked::Close(handle) => match self.handles.remove(&**handle) {
                Some(_) => answer::status(id, Status::Ok, ""),
                None => return Err(unknown()),
            },
            Asked::Read { handle, offset, bytes } => match self.handle(handle)? {
                Handle::File(file) => match file.read(*offset, *bytes)? {
                    bytes if bytes.is_empty() => answer::status(id, Status::Eof, "end of file"),
                    bytes => answer::data(id, &bytes),
                },
                Handle::Directory(_) => return Err(unknown()),
            },
            Asked::ReadDir(handle) => match self.handle(handle)? {
                Handle::Directory(listing) => match listing.next(NAMES_MAX)? {
                    names if names.is_empty() => answer::status(id, Status::Eof, "no more names"),
                    names => answer::names(id, &names),
                },
                Handle::File(_) => return Err(unknown()),
            },
            Asked::Stat(path) => answer::attributes(id, self.tree.stat(path)?),
            Asked::StatHandle(handle) => match self.handle(handle)? {
                Handle::File(file) => answer::attributes(id, file.attributes()?),
                Handle::Directory(listing) => answer::attributes(id, listing.attributes()?),
            },
            Asked::RealPath(path) => {
                let name = Tree::real_path(path)?;
                let attributes = self.tree.stat(path).unwrap_or(Tree::FOLDER);
                answer::names(id, &[Named { long: name.clone(), name, attributes }])
            }
            Asked::Limits => answer::limits(id, HANDLES_MAX.try_into().unwrap_or(u64::MAX)),
            Asked::Change => {
                answer::status(id, Status::PermissionDenied, "files can only be read here")
            }
            Asked::Other => answer::status(id, Status::Unsupported, "not offered here"),
        })
    }

    fn keep(&mut self, handle: Handle) -> io::Result<[u8; HANDLE_BYTES]> {
        if self.handles.len() >= HANDLES_MAX {
            return Err(io::Error::new(ErrorKind::QuotaExceeded, "too many handles"));
        }
        loop {
            let name = self.next.to_be_bytes();
            self.next = self.next.wrapping_add(1);
            if let std::collections::hash_map::Entry::Vacant(free) = self.handles.entry(name) {
                free.insert(handle);
                return Ok(name);
            }
        }
    }

    fn handle(&mut self, name: &[u8]) -> io::Result<&mut Handle> {
        self.handles.get_mut(name).ok_or_else(unknown)
    }
}

fn unknown() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "no such handle")
}

/// Returns how a failure is told: without paths of this machine.
fn explained(error: &io::Error) -> (Status, &'static str) {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            (Status::NoSuchFile, "there is no such file")
        }
        ErrorKind::PermissionDenied | ErrorKind::CrossesDevices => {
            (Status::PermissionDenied, "this is not for reading")
        }
        ErrorKind::QuotaExceeded => (Status::Failure, "too many files are open: close some"),
        ErrorKind::InvalidInput => (Status::Failure, "there is no such handle or path"),
        _ => (Status::Failure, "the file cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use tempfile::TempDir;

    fn scene() -> (TempDir, Session) {
        let dir = tempfile::tempdir().unwrap();
        let place = |path: &str| dir.path().join(path);
        for folder in ["public/nix-store/nar", "logs/ab", "secrets", "keys"] {
            fs_err::create_dir_all(place(folder)).unwrap();
        }
        fs_err::write(place("public/nix-store/nix-cache-info"), "StoreDir: /nix/store\n").unwrap();
        fs_err::write(place("public/nix-store/.fresh"), "half").unwrap();
        fs_err::write(place("secrets/host_ed25519"), "secret").unwrap();
        symlink("../../secrets/host_ed25519", place("public/nix-store/link")).unwrap();
        symlink("/etc", place("public/etc")).unwrap();
        let fifo = place("public/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        (dir, Session::new(tree))
    }

    /// Returns the kind of an answer, and what follows its id.
    fn ask(session: &mut Session, asked: Asked) -> (u8, Vec<u8>) {
        let answer = session.answer(&Request { id: 7, asked });
        (answer[4], answer[9..].to_vec())
    }

    fn path(text: &str) -> Bytes {
        Bytes::copy_from_slice(text.as_bytes())
    }

    fn status(answer: &(u8, Vec<u8>)) -> u32 {
        assert_eq!(answer.0, 101, "{answer:?}");
        u32::from_be_bytes(answer.1[..4].try_into().unwrap())
    }

    fn opened(session: &mut Session, asked: Asked) -> Bytes {
        let (kind, body) = ask(session, asked);
        assert_eq!(kind, 102, "{body:?}");
        Bytes::copy_from_slice(&body[4..])
    }

    #[test]
    fn a_file_is_read_in_pieces() {
        let (_dir, mut session) = scene();
        let handle = opened(&mut session, Asked::Open(path("/public/nix-store/nix-cache-info")));
        let read = |offset, bytes| Asked::Read { handle: handle.clone(), offset, bytes };
        assert_eq!(ask(&mut session, read(10, 4)).1[4..], *b"/nix");
        assert_eq!(status(&ask(&mut session, read(1 << 40, 4))), 1);
        assert_eq!(status(&ask(&mut session, read(u64::MAX, u32::MAX))), 1);
        assert_eq!(status(&ask(&mut session, Asked::Close(handle.clone()))), 0);
        assert_eq!(status(&ask(&mut session, read(0, 4))), 4);
    }

    #[test]
    fn no_path_leads_out_of_the_tree() {
        let (_dir, mut session) = scene();
        for text in [
            "/secrets/host_ed25519",
            "/keys",
            "public/../secrets/host_ed25519",
            "/public/nix-store/../../../secrets/host_ed25519",
            "/public/nix-store/link",
            "/public/etc/passwd",
            "/public/etc",
            "/../etc/passwd",
            "/logs/../../etc/passwd",
            "/public/nix-store/.fresh",
            "/public/\0/etc",
            "/public/nix-store/nix-cache-info/x",
            "/proc/self/environ",
        ] {
            let asked =
                [Asked::Open(path(text)), Asked::OpenDir(path(text)), Asked::Stat(path(text))];
            for asked in asked {
                let shown = format!("{asked:?}");
                let answer = ask(&mut session, asked);
                assert!([2, 3, 4].contains(&status(&answer)), "{shown}: {answer:?}");
            }
        }
        // Neither does one that nobody could open otherwise.
        assert_eq!(status(&ask(&mut session, Asked::Open(path(&"a/".repeat(4_000))))), 4);
        assert_eq!(status(&ask(&mut session, Asked::Open(path("/public/fifo")))), 3);
        assert_eq!(status(&ask(&mut session, Asked::Open(path("/public")))), 3);
    }

    #[test]
    fn folders_are_listed_without_links_and_unfinished_files() {
        let (_dir, mut session) = scene();
        let mut listed = |text: &str| {
            let handle = opened(&mut session, Asked::OpenDir(path(text)));
            let (kind, body) = ask(&mut session, Asked::ReadDir(handle.clone()));
            assert_eq!(kind, 104);
            assert_eq!(status(&ask(&mut session, Asked::ReadDir(handle))), 1);
            body.escape_ascii().to_string()
        };
        let root = listed("/");
        assert!(root.contains("public") && root.contains("logs") && !root.contains("secrets"));
        let store = listed("/public/nix-store/.");
        assert!(store.contains("nix-cache-info") && store.contains("nar"));
        assert!(!store.contains("link") && !store.contains(".fresh"), "{store}");
    }

    #[test]
    fn long_folders_come_in_pages_and_handles_are_counted() {
        let (dir, mut session) = scene();
        for number in 0..NAMES_MAX * 2 {
            fs_err::write(dir.path().join(format!("logs/ab/{number}.log.zst")), "x").unwrap();
        }
        let handle = opened(&mut session, Asked::OpenDir(path("/logs/ab")));
        let mut pages = Vec::new();
        loop {
            let (kind, body) = ask(&mut session, Asked::ReadDir(handle.clone()));
            if kind == 101 {
                break;
            }
            pages.push(u32::from_be_bytes(body[..4].try_into().unwrap()));
        }
        assert_eq!(pages.iter().sum::<u32>(), 200);
        assert!(pages.iter().all(|page| *page <= 100), "{pages:?}");
        for _ in 1..HANDLES_MAX {
            opened(&mut session, Asked::OpenDir(path("/")));
        }
        assert_eq!(status(&ask(&mut session, Asked::OpenDir(path("/")))), 4);
        assert_eq!(status(&ask(&mut session, Asked::Close(handle))), 0);
        opened(&mut session, Asked::OpenDir(path("/")));
    }

    #[test]
    fn nothing_is_changed() {
        let (_dir, mut session) = scene();
        assert_eq!(status(&ask(&mut session, Asked::Change)), 3);
        assert_eq!(status(&ask(&mut session, Asked::Other)), 8);
        assert_eq!(status(&ask(&mut session, Asked::Close(path("nope")))), 4);
        let (kind, body) = ask(&mut session, Asked::RealPath(path("a/../public//./x")));
        assert_eq!(kind, 104);
        assert!(body[8..].starts_with(b"/public/x"), "{body:?}");
    }
}
