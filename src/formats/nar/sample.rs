//! Trees for tests: random ones, their nars, and the tree that a nar was read to hold.

use super::{NarError, NarLimits, NarReader, NarSink, NarWriter, Regular};
use crate::formats::tokens::wide;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Limits that no test meets by accident.
pub(crate) const ROOMY: NarLimits =
    NarLimits { bytes_max: 1 << 40, entries_max: 1 << 20, depth_max: 64 };

/// The children of a directory by name.
type Entries = BTreeMap<Vec<u8>, Tree>;

/// A file tree as a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tree {
    Regular { executable: bool, content: Vec<u8> },
    Symlink(Vec<u8>),
    Directory(Entries),
}

impl Tree {
    /// Returns the tree's nar.
    pub(crate) fn nar(&self) -> Vec<u8> {
        let mut writer = NarWriter::new(Vec::new());
        writer.begin().unwrap();
        self.write(&mut writer);
        writer.finish().unwrap()
    }

    fn write(&self, writer: &mut NarWriter<Vec<u8>>) {
        match self {
            Self::Regular { executable, content } => {
                let size = wide(content.len());
                writer.regular(Regular { executable: *executable, size }).unwrap();
                for piece in content.chunks(3) {
                    writer.content(piece).unwrap();
                }
            }
            Self::Symlink(target) => writer.symlink(target).unwrap(),
            Self::Directory(entries) => {
                writer.directory_begin().unwrap();
                for (name, tree) in entries {
                    writer.entry(name).unwrap();
                    tree.write(writer);
                }
                writer.directory_end().unwrap();
            }
        }
    }
}

/// Any tree, a few levels deep, with names that are no UTF-8 too.
pub(crate) fn any_tree() -> impl Strategy<Value = Tree> {
    let byte = any::<u8>().prop_filter("no slash, no NUL", |b| !matches!(b, b'/' | 0));
    let name = prop::collection::vec(byte.clone(), 1..12)
        .prop_filter("no dots", |name| name != b"." && name != b"..");
    let leaf = prop_oneof![
        (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(executable, content)| Tree::Regular { executable, content }),
        prop::collection::vec(byte, 1..30).prop_map(Tree::Symlink),
    ];
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop::collection::btree_map(name.clone(), inner, 0..6).prop_map(Tree::Directory)
    })
}

/// Puts the tree of a nar together from what a sink is told.
#[derive(Default)]
pub(crate) struct TreeSink {
    open: Vec<(Vec<u8>, Entries)>,
    name: Vec<u8>,
    file: Option<(Regular, Vec<u8>)>,
    pub(crate) root: Option<Tree>,
}

impl TreeSink {
    fn place(&mut self, tree: Tree) {
        match self.open.last_mut() {
            Some((_, entries)) => {
                assert!(entries.insert(std::mem::take(&mut self.name), tree).is_none());
            }
            None => assert!(self.root.replace(tree).is_none()),
        }
    }
}

impl NarSink for TreeSink {
    fn directory_begin(&mut self) -> Result<(), NarError> {
        self.open.push((std::mem::take(&mut self.name), BTreeMap::new()));
        Ok(())
    }
    fn entry(&mut self, name: &[u8]) -> Result<(), NarError> {
        self.name = name.to_vec();
        Ok(())
    }
    fn directory_end(&mut self) -> Result<(), NarError> {
        let (name, entries) = self.open.pop().unwrap();
        self.name = name;
        self.place(Tree::Directory(entries));
        Ok(())
    }
    fn regular(&mut self, head: Regular) -> Result<(), NarError> {
        assert!(self.file.replace((head, Vec::new())).is_none());
        Ok(())
    }
    fn content(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        assert!(!bytes.is_empty());
        self.file.as_mut().unwrap().1.extend_from_slice(bytes);
        Ok(())
    }
    fn regular_end(&mut self) -> Result<(), NarError> {
        let (head, content) = self.file.take().unwrap();
        assert_eq!(wide(content.len()), head.size);
        self.place(Tree::Regular { executable: head.executable, content });
        Ok(())
    }
    fn symlink(&mut self, target: &[u8]) -> Result<(), NarError> {
        self.place(Tree::Symlink(target.to_vec()));
        Ok(())
    }
}

/// Reads a nar in pieces of `piece` bytes.
pub(crate) fn read(nar: &[u8], piece: usize, limits: NarLimits) -> Result<Tree, NarError> {
    let (mut reader, mut sink) = (NarReader::new(limits), TreeSink::default());
    for chunk in nar.chunks(piece) {
        let taken = reader.feed(chunk, &mut sink)?;
        assert!(taken == chunk.len() || reader.is_complete());
    }
    reader.finish()?;
    Ok(sink.root.unwrap())
}
