//! Attacks on the coordinator by outputs: what is declared, what is sent, and what is said to it.

use crate::{
    closure::{drv, file_nar},
    door::output,
};
use bytes::Bytes;
use std::io::Write as _;
use steading::{
    core::{
        derivation::{Derivation, Output, derivation_path},
        hash::Sha256,
        store_path::{StoreDir, StorePath},
    },
    protocol::bulk::OfferedOutput,
};

/// The derivation whose build is attacked.
pub(crate) struct Target {
    pub(crate) path: StorePath,
    pub(crate) text: Vec<u8>,
    pub(crate) out: StorePath,
}

/// What is offered and sent.
pub(crate) struct Made {
    pub(crate) offered: Vec<OfferedOutput>,
    pub(crate) file: Bytes,
    /// What is said to be the hash of the file when it has been sent.
    pub(crate) end_hash: Sha256,
}

/// When an attack is met.
#[derive(Clone, Copy)]
pub(crate) enum Met {
    BeforeTheFirstByte,
    WhileItCame,
}

/// One attack.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// What is among the words of the refusal.
    pub(crate) words: &'static str,
    pub(crate) met: Met,
    pub(crate) target: fn(&str) -> Target,
    pub(crate) make: fn(&Target) -> Made,
}

/// The content of the honest output.
const CONTENT: &[u8] = b"what was built";
/// The content that promised outputs are promised to have.
const PROMISED: &[u8] = b"what was promised";

/// A derivation that promises nothing.
fn plain(name: &str) -> Target {
    let drv = drv(name, "true", &[], &[]);
    Target { path: drv.path, text: drv.text, out: drv.out }
}

/// A derivation that promises the hash of its output.
fn promising(name: &str, algorithm: &str, hash_hex: String) -> Target {
    let like = drv(name, "true", &[], &[]);
    let mut derivation = Derivation::parse(&like.text).unwrap();
    derivation.outputs = vec![Output {
        name: "out".to_owned(),
        path: like.out,
        hash_algorithm: algorithm.to_owned(),
        hash: hash_hex,
    }];
    derivation.compute_outputs(name, &mut |_| None).unwrap();
    let (text, out) = (derivation.to_bytes(), derivation.outputs[0].path.clone());
    let references = derivation.closure_references();
    let file_name = format!("{name}.drv");
    let path = derivation_path(&StoreDir::nix(), &file_name, &text, &references).unwrap();
    Target { path, text, out }
}

fn promising_flat(name: &str) -> Target {
    promising(name, "sha256", Sha256::of(PROMISED).hex())
}

fn promising_tree(name: &str) -> Target {
    promising(name, "r:sha256", Sha256::of(&file_nar(PROMISED)).hex())
}

fn promising_md5(name: &str) -> Target {
    promising(name, "md5", "0".repeat(32))
}

/// The path of an output of another derivation.
fn of_another() -> StorePath {
    drv("another", "true", &[], &[]).out
}

/// An offer of a nar, whatever it is, that declares it rightly.
fn rightly(target: &Target, nar: &[u8]) -> Made {
    let (offered, file) = output(&target.out, nar);
    Made { end_hash: offered.file_hash, offered: vec![offered], file }
}

/// The honest offer.
fn honest(target: &Target) -> Made {
    rightly(target, &file_nar(CONTENT))
}

/// The honest offer with something else declared.
fn declaring(target: &Target, change: impl FnOnce(&mut OfferedOutput)) -> Made {
    let mut made = honest(target);
    change(&mut made.offered[0]);
    made
}

/// The honest offer with another file, which is declared rightly.
fn sending(target: &Target, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Made {
    let mut made = honest(target);
    made.file = change(made.file.to_vec()).into();
    made.end_hash = Sha256::of(&made.file);
    made.offered[0].file_bytes = made.file.len() as u64;
    made.offered[0].file_hash = made.end_hash;
    made
}

/// Writes a string as nars do.
fn put(wire: &mut Vec<u8>, string: &[u8]) {
    wire.extend((string.len() as u64).to_le_bytes());
    wire.extend(string);
    wire.resize(wire.len().next_multiple_of(8), 0);
}

/// A nar of these strings.
fn nar(strings: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    put(&mut wire, b"nix-archive-1");
    for string in strings {
        put(&mut wire, string);
    }
    wire
}

/// A nar that begins with these strings and goes on with a length.
fn with_length(strings: &[&[u8]], length: u64) -> Vec<u8> {
    let mut wire = nar(strings);
    wire.extend(length.to_le_bytes());
    wire.extend([0; 64]);
    wire
}

/// A nar of one directory with empty files of these names.
fn directory(names: &[&[u8]]) -> Vec<u8> {
    let mut strings: Vec<&[u8]> = vec![b"(", b"type", b"directory"];
    for name in names {
        strings.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
        strings.extend([&b"("[..], b"type", b"regular", b"contents", b"", b")", b")"]);
    }
    strings.push(b")");
    nar(&strings)
}

/// A nar of one file with these fields.
fn file(fields: &[&[u8]]) -> Vec<u8> {
    nar(&[&[&b"("[..], b"type", b"regular"], fields].concat())
}

fn symlink(target: &[u8]) -> Vec<u8> {
    nar(&[b"(", b"type", b"symlink", b"target", target, b")"])
}

/// The beginning of a nar of directories inside one another. Nobody reads on behind the limit, so
/// no end is needed.
fn nested(depth: usize) -> Vec<u8> {
    let mut level = Vec::new();
    for string in [&b"entry"[..], b"(", b"name", b"d", b"node", b"(", b"type", b"directory"] {
        put(&mut level, string);
    }
    let mut wire = nar(&[b"(", b"type", b"directory"]);
    (0..depth).for_each(|_| wire.extend(&level));
    wire
}

/// A nar with a byte that is not 0 in the padding behind the last of these bytes.
fn with_dirty_padding(mut wire: Vec<u8>, behind: &[u8]) -> Vec<u8> {
    let at = wire.windows(behind.len()).rposition(|window| window == behind).unwrap();
    let padding = at + behind.len();
    assert_eq!(wire[padding], 0);
    wire[padding] = 1;
    wire
}

/// Compresses what is written, with a change of the encoder's parameters.
fn compressed(
    nar: &[u8],
    change: impl FnOnce(&mut zstd::stream::write::Encoder<'_, Vec<u8>>),
) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    change(&mut encoder);
    encoder.write_all(nar).unwrap();
    encoder.finish().unwrap()
}

/// A small file of half a gigabyte.
fn bomb() -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&file(&[b"contents"])).unwrap();
    encoder.write_all(&(1u64 << 29).to_le_bytes()).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..512).for_each(|_| encoder.write_all(&zeros).unwrap());
    encoder.finish().unwrap()
}

/// A frame that stock decoders skip.
const SKIPPABLE: [u8; 12] = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];

/// Returns all attacks.
pub(crate) fn attacks() -> Vec<Attack> {
    let mut attacks = declarations();
    attacks.extend(compressions());
    attacks.extend(files());
    attacks.extend(contents());
    attacks.extend(names());
    attacks.extend(promises());
    attacks
}

const fn before(name: &'static str, words: &'static str, make: fn(&Target) -> Made) -> Attack {
    Attack { name, words, met: Met::BeforeTheFirstByte, target: plain, make }
}

const fn behind(name: &'static str, words: &'static str, make: fn(&Target) -> Made) -> Attack {
    Attack { name, words, met: Met::WhileItCame, target: plain, make }
}

/// Declarations that cannot be right: no byte is received.
fn declarations() -> Vec<Attack> {
    vec![
        before("no output", "was not offered", |t| Made { offered: Vec::new(), ..honest(t) }),
        before("the derivation for an output", "of this build is", |t| {
            declaring(t, |offered| offered.info.path = t.path.clone())
        }),
        before("another build’s output", "of this build is", |t| {
            declaring(t, |offered| offered.info.path = of_another())
        }),
        before("one output more", "is not an output of this build", |t| {
            let mut made = honest(t);
            made.offered.push(made.offered[0].clone());
            "dev".clone_into(&mut made.offered[1].name);
            made.offered[1].info.path = of_another();
            made
        }),
        before("an output twice", "offered twice", |t| {
            let mut made = honest(t);
            made.offered.push(made.offered[0].clone());
            made
        }),
        before("an output under a path for a name", "is not an output of this build", |t| {
            declaring(t, |offered| "../../out".clone_into(&mut offered.name))
        }),
        before("an output with half a megabyte of name", "is not an output of this build", |t| {
            declaring(t, |offered| offered.name = "x".repeat(500_000))
        }),
        before("hundreds of outputs", "more than 256 outputs", |t| {
            let made = honest(t);
            Made { offered: vec![made.offered[0].clone(); 257], ..made }
        }),
        before("no compression, but another hash", "cannot both be right", |t| {
            declaring(t, |offered| "none".clone_into(&mut offered.compression))
        }),
        before("an unknown compression", "is not supported", |t| {
            declaring(t, |offered| "xz".clone_into(&mut offered.compression))
        }),
        before("a compression without a name", "is not supported", |t| {
            declaring(t, |offered| offered.compression = String::new())
        }),
        before("a compression whose name grows when it is told", "is not supported", |t| {
            declaring(t, |offered| offered.compression = "\u{1}".repeat(900_000))
        }),
        before("a nar of 16 EiB", "longer than the", |t| {
            declaring(t, |offered| offered.info.nar_bytes = u64::MAX)
        }),
        before("a nar just over the limit", "longer than the", |t| {
            declaring(t, |offered| offered.info.nar_bytes = (64 << 30) + 1)
        }),
        before("a file of 16 EiB", "staged-gib-max", |t| {
            declaring(t, |offered| offered.file_bytes = u64::MAX)
        }),
        before("a file much longer than its nar", "too long for its nar", |t| {
            declaring(t, |offered| offered.file_bytes = 1 << 20)
        }),
        before("a reference to what was not there", "was not there when it was built", |t| {
            declaring(t, |offered| offered.info.references = vec![of_another()])
        }),
        before("a reference to the own derivation", "was not there when it was built", |t| {
            declaring(t, |offered| offered.info.references = vec![t.path.clone()])
        }),
        before("thousands of references", "was not there when it was built", |t| {
            let reference = |n: u32| {
                let hash = Sha256::of(&n.to_le_bytes());
                StoreDir::nix().make_path("test", &hash, "x").unwrap()
            };
            declaring(t, |offered| offered.info.references = (0..5_000).map(reference).collect())
        }),
    ]
}

/// Files of which it is not true how they are compressed.
fn compressions() -> Vec<Attack> {
    vec![
        before("a file that is not compressed, but said to be", "cannot both be right", |t| {
            sending(t, |_| file_nar(CONTENT))
        }),
        behind("a file that begins like a nar", "cannot be decompressed", |t| {
            sending(t, |_| [&file_nar(CONTENT)[..], &[0; 8]].concat())
        }),
        behind("no compression and no nar", "expected the beginning of a nar", |t| {
            let mut made = sending(t, |file| file);
            made.offered[0].info.nar_hash = made.offered[0].file_hash;
            made.offered[0].info.nar_bytes = made.offered[0].file_bytes;
            "none".clone_into(&mut made.offered[0].compression);
            made
        }),
    ]
}

/// Files that are not what was declared of them, or no file that may be sent.
fn files() -> Vec<Attack> {
    vec![
        behind("another hash of the nar", "the nar was said to have the hash", |t| {
            declaring(t, |offered| offered.info.nar_hash = Sha256::of(b"another"))
        }),
        behind("a bit of the content flipped", "the nar was said to have the hash", |t| {
            let mut wire = file_nar(CONTENT);
            let at = wire.windows(4).position(|window| window == b"what").unwrap();
            wire[at] ^= 1;
            let mut made = rightly(t, &wire);
            made.offered[0].info.nar_hash = Sha256::of(&file_nar(CONTENT));
            made
        }),
        behind("a nar said to be shorter", "bytes, but has", |t| {
            declaring(t, |offered| offered.info.nar_bytes -= 8)
        }),
        behind("a nar said to be longer", "bytes, but has", |t| {
            declaring(t, |offered| offered.info.nar_bytes += 8)
        }),
        behind("a nar said to be empty", "bytes, but has", |t| {
            declaring(t, |offered| offered.info.nar_bytes = 0)
        }),
        behind("another hash of the file", "the file was said to have the hash", |t| {
            declaring(t, |offered| offered.file_hash = Sha256::of(b"another"))
        }),
        behind("another hash at the end", "the file was said to have the hash", |t| Made {
            end_hash: Sha256::of(b"another"),
            ..honest(t)
        }),
        behind("a file said to be shorter", "bytes of a file of", |t| {
            declaring(t, |offered| offered.file_bytes -= 1)
        }),
        behind("a file said to be longer", "bytes of a file of", |t| {
            declaring(t, |offered| offered.file_bytes += 1)
        }),
        behind("a file that goes on and on", "bytes of a file of", |t| {
            let made = honest(t);
            let file = [&made.file[..], &[0; 3_000_000]].concat().into();
            Made { file, ..made }
        }),
        behind("no byte", "0 bytes of a file of", |t| Made { file: Bytes::new(), ..honest(t) }),
        behind("an empty file", "ends before its compressed content", |t| {
            sending(t, |_| Vec::new())
        }),
        behind("half a file", "ends before its compressed content", |t| {
            sending(t, |file| file[..file.len() / 2].to_vec())
        }),
        behind("a file without its last byte", "ends before its compressed content", |t| {
            sending(t, |file| file[..file.len() - 1].to_vec())
        }),
        behind("a byte behind the file", "behind the end of the nar", |t| {
            sending(t, |file| [&file[..], &[0]].concat())
        }),
        behind("a file twice", "behind the end of the nar", |t| {
            sending(t, |file| [&file[..], &file].concat())
        }),
        behind("a frame that is skipped first", "behind the end of the nar", |t| {
            sending(t, |file| [&SKIPPABLE[..], &file].concat())
        }),
        behind("a frame that is skipped last", "behind the end of the nar", |t| {
            sending(t, |file| [&file[..], &SKIPPABLE].concat())
        }),
        behind("another compression", "cannot be decompressed", |t| {
            sending(t, |_| b"\x1f\x8b\x08\0\0\0\0\0\0\x03\x03\0\0\0\0\0\0\0\0\0".to_vec())
        }),
        behind("a checksum that is wrong", "cannot be decompressed", |t| {
            sending(t, |_| {
                let nar = file_nar(CONTENT);
                let mut file = compressed(&nar, |encoder| encoder.include_checksum(true).unwrap());
                *file.last_mut().unwrap() ^= 1;
                file
            })
        }),
        behind("a window of 256 MiB", "cannot be decompressed", |t| {
            let wire = file_nar(&vec![0; 1 << 20]);
            let mut made = rightly(t, &wire);
            made.file = compressed(&wire, |encoder| encoder.window_log(28).unwrap()).into();
            made.end_hash = Sha256::of(&made.file);
            made.offered[0].file_bytes = made.file.len() as u64;
            made.offered[0].file_hash = made.end_hash;
            made
        }),
        behind("a bomb", "bytes, but has", |t| sending(t, |_| bomb())),
    ]
}

/// Files that hold no nar, or one that is not allowed.
fn contents() -> Vec<Attack> {
    vec![
        behind("nothing for a nar", "ends early, after 0 bytes", |t| rightly(t, b"")),
        behind("half a nar", "ends early", |t| rightly(t, &file_nar(CONTENT)[..80])),
        behind("a nar without its last byte", "ends early", |t| {
            let wire = file_nar(CONTENT);
            rightly(t, &wire[..wire.len() - 1])
        }),
        behind("zeros behind a nar", "behind the end of the nar", |t| {
            rightly(t, &[&file_nar(CONTENT)[..], &[0; 8]].concat())
        }),
        behind("two nars", "behind the end of the nar", |t| {
            rightly(t, &[file_nar(CONTENT), file_nar(CONTENT)].concat())
        }),
        behind("a derivation for a nar", "expected the beginning", |t| rightly(t, &t.text)),
        behind("a bit of the magic flipped", "expected the beginning", |t| {
            let mut wire = file_nar(CONTENT);
            wire[9] ^= 1;
            rightly(t, &wire)
        }),
        behind("a content of 16 EiB", "longer than the", |t| {
            rightly(t, &with_length(&[b"(", b"type", b"regular", b"contents"], u64::MAX))
        }),
        behind("a content of 8 EiB", "longer than the", |t| {
            rightly(t, &with_length(&[b"(", b"type", b"regular", b"contents"], 1 << 63))
        }),
        behind("a content of 64 TiB", "longer than the", |t| {
            rightly(t, &with_length(&[b"(", b"type", b"regular", b"contents"], 1 << 46))
        }),
        behind("a content that does not come", "ends early", |t| {
            rightly(t, &with_length(&[b"(", b"type", b"regular", b"contents"], 1 << 35))
        }),
        behind("a word of 16 EiB", "a string of 18446744073709551615 bytes", |t| {
            rightly(t, &with_length(&[b"(", b"type"], u64::MAX))
        }),
        behind("a name of 16 EiB", "a string of 18446744073709551615 bytes", |t| {
            let words: [&[u8]; 6] = [b"(", b"type", b"directory", b"entry", b"(", b"name"];
            rightly(t, &with_length(&words, u64::MAX))
        }),
        behind("100,000 directories inside one another", "deeper than the 512", |t| {
            rightly(t, &nested(100_000))
        }),
        behind("one directory too many", "deeper than the 512", |t| rightly(t, &nested(512))),
        behind("a socket", "expected", |t| rightly(t, &nar(&[b"(", b"type", b"socket"]))),
        behind("two kinds", "expected", |t| {
            rightly(t, &nar(&[b"(", b"type", b"regular", b"type", b"directory", b")"]))
        }),
        behind("a file without contents", "expected", |t| rightly(t, &file(&[b")"]))),
        behind("contents twice", "expected", |t| {
            rightly(t, &file(&[b"contents", b"a", b"contents", b"b", b")"]))
        }),
        behind("an executable with a value", "expected", |t| {
            rightly(t, &file(&[b"executable", b"setuid", b"contents", b"", b")"]))
        }),
        behind("an entry without a node", "expected", |t| {
            let words: [&[u8]; 8] =
                [b"(", b"type", b"directory", b"entry", b"(", b"name", b"a", b")"];
            rightly(t, &nar(&words))
        }),
        behind("padding of a content that says something", "the padding", |t| {
            rightly(t, &with_dirty_padding(file_nar(CONTENT), CONTENT))
        }),
        behind("padding of a name that says something", "the padding", |t| {
            rightly(t, &with_dirty_padding(directory(&[b"some"]), b"some"))
        }),
        behind("a reference to itself that is not declared", "not among its declared", |t| {
            rightly(t, &file_nar(t.out.to_string().as_bytes()))
        }),
        behind("a reference to itself that is not there", "but does not", |t| {
            declaring(t, |offered| offered.info.references = vec![t.out.clone()])
        }),
    ]
}

/// Nars with names and targets that no file may have.
fn names() -> Vec<Attack> {
    vec![
        behind("the directory above", "‘..’", |t| rightly(t, &directory(&[b".."]))),
        behind("the same directory", "‘.’", |t| rightly(t, &directory(&[b"."]))),
        behind("no name", "‘’", |t| rightly(t, &directory(&[b""]))),
        behind("a name that leads out", "‘a/../../b’", |t| {
            rightly(t, &directory(&[b"a/../../b"]))
        }),
        behind("an absolute name", "‘/etc/passwd’", |t| {
            rightly(t, &directory(&[b"/etc/passwd"]))
        }),
        behind("a slash", "‘/’", |t| rightly(t, &directory(&[b"/"]))),
        behind("a name with NUL", "‘a\\x00b’", |t| rightly(t, &directory(&[b"a\0b"]))),
        behind("a name that moves the cursor and is out of order", "‘\\x1b[2J’", |t| {
            rightly(t, &directory(&[b"a", b"\x1b[2J"]))
        }),
        behind("a name of 256 bytes", "a string of 256 bytes", |t| {
            rightly(t, &directory(&[&[b'x'; 256]]))
        }),
        behind("a name twice", "out of order or there twice", |t| {
            rightly(t, &directory(&[b"a", b"a"]))
        }),
        behind("names out of order", "out of order", |t| rightly(t, &directory(&[b"b", b"a"]))),
        behind("names ordered as signed bytes", "out of order", |t| {
            rightly(t, &directory(&[b"\xff", b"a"]))
        }),
        behind("a name before its beginning", "out of order", |t| {
            rightly(t, &directory(&[b"ab", b"a"]))
        }),
        behind("a link to nowhere", "the target", |t| rightly(t, &symlink(b""))),
        behind("a link with NUL", "the target", |t| rightly(t, &symlink(b"a\0b"))),
        behind("a link of 4096 bytes", "a string of 4096 bytes", |t| {
            rightly(t, &symlink(&[b'x'; 4096]))
        }),
        behind("a link that is entered as a directory", "out of order", |t| {
            let link: [&[u8]; 5] = [b"(", b"type", b"symlink", b"target", b"/etc"];
            let file: [&[u8]; 6] = [b"(", b"type", b"regular", b"contents", b"", b")"];
            let name: [&[u8]; 5] = [b"entry", b"(", b"name", b"a", b"node"];
            let head: [&[u8]; 3] = [b"(", b"type", b"directory"];
            let words = [&head[..], &name, &link, &[b")", b")"], &name, &file, &[b")", b")"]];
            rightly(t, &nar(&words.concat()))
        }),
    ]
}

/// Outputs whose content was promised.
fn promises() -> Vec<Attack> {
    vec![
        Attack {
            target: promising_flat,
            ..behind("another content than promised", "the derivation promises", honest)
        },
        Attack {
            target: promising_flat,
            ..behind("a promised file that is executable", "the derivation promises", |t| {
                let fields: [&[u8]; 5] = [b"executable", b"", b"contents", PROMISED, b")"];
                rightly(t, &file(&fields))
            })
        },
        Attack {
            target: promising_flat,
            ..behind("a directory for a promised file", "the derivation promises", |t| {
                rightly(t, &directory(&[b"a"]))
            })
        },
        Attack {
            target: promising_tree,
            ..behind("another tree than promised", "the derivation promises", honest)
        },
        Attack {
            target: promising_md5,
            ..before("a promise that cannot be checked", "cannot be verified here", honest)
        },
    ]
}
